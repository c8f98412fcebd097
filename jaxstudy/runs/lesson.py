"""What a script of experiments/ says of its lesson: one literal, LESSON, near its top.

The README's row is made from it and from the measured results, so that a new lesson is
one script: nothing else lists lessons.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A lesson of the course.

    Args:
        number: its number in the course, as "2.1.2"; of several, "2.0, 2.1".
        title: what it shows, one phrase.
        headline: the metrics of result.json that stand in the README's row, in their
            order there, each with its name there.
    """

    number: str
    title: str
    headline: Mapping[str, str]


def find_lessons(folder: Path) -> dict[str, Lesson]:
    """The LESSON of every script ch*.py of a folder, by script and in their order.

    Scripts are imported for it; one without a LESSON is no lesson.
    """
    lessons = {}
    for path in folder.glob("ch*.py"):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if hasattr(module, "LESSON"):
            lessons[path.stem] = module.LESSON
    return dict(sorted(lessons.items(), key=lambda item: (item[1].number, item[0])))
