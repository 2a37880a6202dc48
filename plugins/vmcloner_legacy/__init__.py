"""Configuration of earlier versions, and xl.cfg files, as templates and settings of this one."""
