"""What a TIFF says of its making, beside its pixels."""

from pathlib import Path
from xml.etree import ElementTree

from .images import DAMAGE, open_tiff


def read_metadata(path: str | Path) -> dict[str, float]:
    """What a TIFF says of its making: PIXEL_SIZE_UM and MINUTES_PER_FRAME, those that are there and plausible.

    Read from ImageJ's and OME's metadata, else from the resolution tags. Nothing for other or damaged files.
    """
    found: dict[str, float | None] = {}
    try:
        with open_tiff(path) as tif:
            tags, imagej = tif.pages.first.tags, tif.imagej_metadata or {}
            x, y = tags["XResolution"].value if "XResolution" in tags else (0, 1)
            per_unit, unit = x / max(y, 1), tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 1
            imagej_unit = str(imagej.get("unit", "")).replace("\\u00B5", "u").replace("µ", "u").replace("micron", "um")
            um = {"um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "inch": 25400.0}.get(imagej_unit) if imagej else {
                2: 25400.0, 3: 1e4}.get(int(unit))
            found["PIXEL_SIZE_UM"] = um / per_unit if um and per_unit else None
            found["MINUTES_PER_FRAME"] = float(imagej["finterval"]) / 60 if "finterval" in imagej else None
            if tif.is_ome and tif.ome_metadata:
                pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
                said = pixels.attrib if pixels is not None else {}
                if said.get("PhysicalSizeXUnit", "µm") in ("µm", "um") and "PhysicalSizeX" in said:
                    found["PIXEL_SIZE_UM"] = float(said["PhysicalSizeX"])
                if said.get("TimeIncrementUnit", "s") == "s" and "TimeIncrement" in said:
                    found["MINUTES_PER_FRAME"] = float(said["TimeIncrement"]) / 60
    except (*DAMAGE, ElementTree.ParseError):
        return {}
    limits = {"PIXEL_SIZE_UM": (0.005, 20), "MINUTES_PER_FRAME": (1e-3, 1e4)}  # 72 dots per inch is no pixel size
    return {name: value for name, value in found.items() if value and limits[name][0] <= value <= limits[name][1]}
