"""The carrier of calls to other hosts: mitogen over the user's own OpenSSH.

Only text crosses; nothing is opened on a host but its sshd. mitogen starts a Python there, which
ends when the connection does.
"""
