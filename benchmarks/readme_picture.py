"""The README's picture: the trained demo student (run `make run` first) on a validation frame -> docs/result.png."""

from segkit import Settings, discover, load_model, segment
from segkit.data import read_pair
from segkit.figures import TEACHER, grey, overlay, show_pictures, to_png

settings = Settings()
frame = [f for f in discover(settings.dataset_path).pairs if f.unit == ("REF", "Pos109")][-1]
image, teacher = read_pair(frame)
probability, _, labels = segment(load_model(settings.run_dir, "cpu"), image)
figure = show_pictures([grey(image), probability, overlay(image, labels, None), overlay(image, labels),
                        overlay(image, teacher, TEACHER)],
                       ["image", "student: probability", "student: cells", "student: outlines", "teacher: outlines"],
                       0.0733)
(settings.root / "docs" / "result.png").write_bytes(to_png(figure, 9))
