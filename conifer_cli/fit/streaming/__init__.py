"""Forecast models whose experts stay on the disk.

`records` keeps what this machine has measured: the rate of its disk, and how routers repeat
themselves. `forecast` joins both with a verdict. `wording` puts the forecast into lines and JSON.
`engine.fit.streaming` does the arithmetic.
"""
