"""The carrier of calls to other hosts for sites that have a cluster of Dask distributed.

A worker of the cluster runs beside each host and offers the resource ``vmcloner-HOST``. It starts
an engine's process for each controller and passes text on; that process ends with the controller,
with its connection, or with the worker. Values are JSON text, as with each carrier.
"""
