"""The arguments of ``cache-dit metrics``, and what they ask for. Light to import: the metrics themselves come later."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cache_dit.cli.arguments import UsageError, whole_number

Kind = Literal["pictures", "videos", "prompts"]


@dataclass(frozen=True)
class Measure:
    """A metric of the command line.

    Args:
        kinds: what it compares.
        descending: whether more is better.
        of_sets: whether it compares sets, so that two single pictures are too few.
    """

    kinds: tuple[Kind, ...]
    descending: bool = False
    of_sets: bool = False

    def allows(self, comparison: Comparison) -> bool:
        """Whether it can be taken of what is compared."""
        single = comparison.kind == "pictures" and comparison.test.is_file()
        return comparison.kind in self.kinds and not (self.of_sets and single)


MEASURES: dict[str, Measure] = {
    "lpips": Measure(("pictures", "videos")),
    "psnr": Measure(("pictures", "videos"), descending=True),
    "ssim": Measure(("pictures", "videos"), descending=True),
    "mse": Measure(("pictures", "videos")),
    "fid": Measure(("pictures", "videos"), of_sets=True),
    "clip_score": Measure(("prompts",), descending=True),
    "image_reward": Measure(("prompts",), descending=True),
}

NEEDED: dict[Kind, str] = {
    "pictures": "-i1 and -i2, or -d and -r",
    "videos": "-v1 and -v2, or -vd and -rv",
    "prompts": "-p and -i2, or -rp and -d",
}
"""The flags that a kind of comparison is asked for with."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``cache-dit metrics``."""
    parser.add_argument(
        "metrics",
        nargs="+",
        choices=[*MEASURES, "all"],
        metavar="METRIC",
        help=f"{', '.join(MEASURES)}, or all that what is given allows",
    )
    pair = parser.add_argument_group("one against one")
    _path(pair, "-i1", "--img-true", "true picture, or folder of them")
    _path(pair, "-i2", "--img-test", "picture to judge, or folder of them")
    _path(pair, "-p", "--prompt-true", "text file with the prompts of -i2, one a line")
    _path(pair, "-v1", "--video-true", "true video, or folder of them")
    _path(pair, "-v2", "--video-test", "video to judge, or folder of them")
    many = parser.add_argument_group("one against many")
    _path(many, "-d", "--img-source-dir", "folder with a folder of pictures for each configuration")
    _path(many, "-r", "--ref-img-dir", "folder of the true pictures; a file: -d has one picture for each configuration")
    _path(many, "-rp", "--ref-prompt-true", "text file with the prompts of each of them, one a line")
    _path(many, "-vd", "--video-source-dir", "folder with a video, or a folder of them, for each configuration")
    _path(many, "-rv", "--ref-video", "true video, or folder of them")
    how = parser.add_argument_group("how")
    how.add_argument("--psnr-type", choices=("custom", "skimage"), default="custom", help="who computes PSNR")
    how.add_argument(
        *("-b", "--fid-batch-size"),
        type=whole_number(1),
        default=1,
        metavar="N",
        help="pictures that FID's network sees at once (default %(default)s)",
    )
    how.add_argument("-verbose", "--enable-verbose", action="store_true", help="a line for each pair, on stderr")
    _add_output(parser.add_argument_group("output"))


def _add_output(output: argparse._ArgumentGroup) -> None:
    output.add_argument("-s", "--summary", action="store_true", help="all results again, best first")
    output.add_argument("-table", "--gen-markdown-table", action="store_true", help="all results as a Markdown table")
    _path(output, "-plog", "--perf-log", "log whose lines name a configuration and have `tag: number` in them")
    output.add_argument(
        *("-ptags", "--perf-tags"),
        nargs="+",
        default=["time", "tflops"],
        metavar="TAG",
        help="numbers to take from it (default: time tflops)",
    )
    output.add_argument("-extra-ptags", "--extra-perf-tags", nargs="+", default=[], metavar="TAG", help="more of them")
    output.add_argument(
        "--cal-speedup", action="store_true", help="speed-ups: the largest number of a tag ÷ a configuration's"
    )
    _path(output, "--json", None, "write all results as JSON; - is the standard output")
    _path(output, "--csv", None, "write all results as CSV; - is the standard output")


def _path(group: argparse._ArgumentGroup, flag: str, long: str | None, text: str) -> None:
    group.add_argument(*([flag, long] if long else [flag]), type=Path, metavar="PATH", help=text)


@dataclass(frozen=True)
class Comparison:
    """Something to measure.

    Args:
        kind: what is compared.
        true: what it is compared with; for prompts the file with them.
        test: what is judged.
        names: both, as they are shown.
    """

    kind: Kind
    true: Path
    test: Path
    names: tuple[str, str]

    @property
    def config(self) -> str:
        """The name of what is judged."""
        return self.names[1]

    @property
    def logged(self) -> tuple[str, str]:
        """Both names as a log would have them: of a path its last part, of a file without the suffix."""
        true, test = (path.stem if path.is_file() else path.name for path in (self.true, self.test))
        return true, test


def comparisons(arguments: argparse.Namespace) -> list[Comparison]:
    """What the arguments ask to compare.

    Raises:
        UsageError: flags that belong together are not all there, or lead to nothing.
    """
    _check_together(arguments)
    found = []
    pairs: list[tuple[Kind, Path | None, Path | None]] = [
        ("pictures", arguments.img_true, arguments.img_test),
        ("prompts", arguments.prompt_true, arguments.img_test),
        ("videos", arguments.video_true, arguments.video_test),
    ]
    for kind, true, test in pairs:
        if true is not None and test is not None:
            found.append(Comparison(kind, true, test, (str(true), str(test))))
    many: list[tuple[Kind, Path | None, Path | None]] = [
        ("pictures", arguments.ref_img_dir, arguments.img_source_dir),
        ("prompts", arguments.ref_prompt_true, arguments.img_source_dir),
        ("videos", arguments.ref_video, arguments.video_source_dir),
    ]
    for kind, true, source in many:
        if true is not None and source is not None:
            for test in _configurations(kind, true, source):
                shown = test.name if test == source else str(test.relative_to(source))
                found.append(Comparison(kind, true, test, (true.name, shown)))
    if not found:
        raise UsageError(f"nothing to measure: pass {'; or '.join(NEEDED.values())}")
    return found


def chosen_metrics(arguments: argparse.Namespace, found: list[Comparison]) -> list[str]:
    """The metrics that were asked for, each once; for "all" those that what is compared allows.

    Raises:
        UsageError: a metric has nothing to compare.
    """
    kinds = {comparison.kind for comparison in found}
    allowed = [name for name, measure in MEASURES.items() if any(map(measure.allows, found))]
    asked = [name for metric in arguments.metrics for name in (allowed if metric == "all" else [metric])]
    for name in asked:
        if not kinds & set(MEASURES[name].kinds):
            raise UsageError(f"{name} needs {'; or '.join(NEEDED[kind] for kind in MEASURES[name].kinds)}")
    return list(dict.fromkeys(asked))


def _check_together(arguments: argparse.Namespace) -> None:
    given = {name for name, value in vars(arguments).items() if value is not None}
    for one, others, text in (
        ("img_true", {"img_test"}, "-i1/--img-true needs -i2/--img-test"),
        ("img_test", {"img_true", "prompt_true"}, "-i2/--img-test needs -i1/--img-true or -p/--prompt-true"),
        ("prompt_true", {"img_test"}, "-p/--prompt-true needs -i2/--img-test"),
        ("video_true", {"video_test"}, "-v1/--video-true needs -v2/--video-test"),
        ("video_test", {"video_true"}, "-v2/--video-test needs -v1/--video-true"),
        ("img_source_dir", {"ref_img_dir", "ref_prompt_true"}, "-d/--img-source-dir needs -r/--ref-img-dir or -rp"),
        ("ref_img_dir", {"img_source_dir"}, "-r/--ref-img-dir needs -d/--img-source-dir"),
        ("ref_prompt_true", {"img_source_dir"}, "-rp/--ref-prompt-true needs -d/--img-source-dir"),
        ("video_source_dir", {"ref_video"}, "-vd/--video-source-dir needs -rv/--ref-video"),
        ("ref_video", {"video_source_dir"}, "-rv/--ref-video needs -vd/--video-source-dir"),
    ):
        if one in given and not given & others:
            raise UsageError(text)
    if arguments.json == arguments.csv == Path("-"):
        raise UsageError("--json - and --csv - would mix on the standard output: write one of them to a file")
    if arguments.cal_speedup and arguments.perf_log is None:
        raise UsageError("--cal-speedup needs -plog/--perf-log")


def _configurations(kind: Kind, true: Path, source: Path) -> list[Path]:
    """What is in a folder of configurations, without the reference: folders, or files where that is a file."""
    from cache_dit.metrics.pairs import find_pictures, find_videos, natural_key

    if not source.is_dir():
        raise UsageError(f"{source} is no folder")
    if not true.exists():
        raise UsageError(f"{true}, which is to be compared with what is in {source}, does not exist")
    if kind != "prompts" and true.is_file():
        files = find_pictures(source) if kind == "pictures" else find_videos(source)
        found = [path for path in files if not path.samefile(true)]
    else:
        found = sorted((path for path in source.iterdir() if path.is_dir()), key=natural_key)
        found = [path for path in found if not (true.exists() and path.samefile(true))]
        if kind == "prompts" and not found:
            return [source]
    if not found:
        what = "folder" if true.is_dir() else "file"
        raise UsageError(f"{source} has nothing to compare with {true}: expected a {what} for each configuration")
    return found


def get_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was typed after ``cache-dit-metrics-cli``, for a script that measures in its own way.

    Args:
        arguments: what was typed; that of this process when None.
    """
    parser = argparse.ArgumentParser("cache-dit-metrics-cli", allow_abbrev=False)
    add_arguments(parser)
    return parser.parse_args(arguments)
