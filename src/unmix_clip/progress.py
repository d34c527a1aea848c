"""Progress on stderr: what is being done, how far, how fast, how long still."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    """Things done a second."""

    def render(self, task: Task) -> Text:
        """Render the rate, measured over the last seconds or, at the end, over the whole."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f} {task.fields['unit']}/s" if speed else "")


class Counter:
    """Handle of a running bar."""

    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more things done; `note` is shown behind the bar."""
        self._progress.update(self._task, advance=steps, note=note)  # type: ignore[arg-type]


@contextmanager
def progress_bar(title: str, total: int, unit: str, done: int = 0) -> Iterator[Counter]:
    """Show a bar on stderr while the block runs; nothing but a last line where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,}/{task.total:,}"),
        _Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = 200  # a log file need not wrap
    with Progress(*columns, console=console) as progress:
        yield Counter(progress, progress.add_task(title, total=total, completed=done, unit=unit, note=""))
