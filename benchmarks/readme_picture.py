"""The README's figure: the trained demo student (run `make run` first) on a validation frame -> docs/result.png."""

from segkit import Settings, discover, load_model, segment
from segkit.data.dataset import read_pair
from segkit.notebook.plots import TEACHER, grey, overlay, show_pictures, to_png


def main() -> None:
    settings = Settings()
    frame = [f for f in discover(settings.dataset_path).pairs if f.unit == ("REF", "Pos109")][-1]
    image, teacher = read_pair(frame)
    probability, _, labels = segment(load_model(settings.run_dir, "cpu"), image)
    pictures = {"image": grey(image), "student: probability": probability,
                "student: cells": overlay(image, labels, None), "student: outlines": overlay(image, labels),
                "teacher: outlines": overlay(image, teacher, TEACHER)}
    figure = show_pictures([*pictures.values()], [*pictures], settings.pixel_size_um)
    (settings.root / "docs" / "result.png").write_bytes(to_png(figure, 9))


if __name__ == "__main__":
    main()
