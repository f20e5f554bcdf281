"""Teachers: classical, deterministic stylisations of photographs that students learn to imitate.

`recipes.py` has one function a style. It is put together from the steps in the other modules.
"""
