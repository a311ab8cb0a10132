"""Options as a person reads them: the lines of `--help` and the table printed at the start of a run."""

import dataclasses
import shutil
import sys
import types
from typing import get_args, get_origin

USAGE = "main.py PATH [-O | -O2] [--hsm] [flags]"
PLAIN_COLUMNS = 3
CELL_WIDTH = 42
METAVARS = {int: "N", float: "X", str: "NAME"}


def flag_fields(options):
    """The fields of Options that are flags, in order."""
    return [entry for entry in dataclasses.fields(options) if "group" in entry.metadata]


def value_type(entry):
    """(type of one value, how many values or None) of a field, from its annotation."""
    if get_origin(entry.type) is tuple:
        parts = get_args(entry.type)
        return parts[0], len(parts)
    if isinstance(entry.type, types.UnionType):
        return get_args(entry.type)[0], None
    return entry.type, None


def value_text(value):
    """A value as it would be typed; on or off for a switch."""
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return " ".join(value_text(part) for part in value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def help_text(options, presets):
    """What `--help` prints: the flags by group, a line each. `presets` maps a preset's field to what it implies."""
    lines = [
        f"usage: {USAGE}",
        "",
        "Reconstruct a scene from photos: python main.py PATH -O --hsm",
        "A switch shown as --[no-]NAME is turned off by --no-NAME, also where a preset implies it. Defaults are in brackets.",
    ]
    entries = [(_left(entry, presets), entry) for entry in flag_fields(options)]
    width = max(len(left) for left, _ in entries)
    group = None
    for left, entry in entries:
        if entry.metadata["group"] != group:
            group = entry.metadata["group"]
            lines += ["", f"{group}:"]
        lines.append(f"  {left:{width}}  {_right(entry, presets)}")
    return "\n".join(lines) + "\n"


def table_text(options, preset):
    """The table of `options` as text: rich's for a terminal, aligned plain text otherwise. Marks: + typed, * implied by `preset`."""
    legend = "+ given" + (f"   * implied by {preset}" if options.implied else "")
    if not sys.stdout.isatty():
        return "\n".join(_plain_lines(_groups(options, PLAIN_COLUMNS)) + [legend])
    return _rich_text(options, legend)


def _left(entry, presets):
    if entry.name == "path":
        return "PATH"
    if entry.name in presets:
        return f"-{entry.name}"
    kind, count = value_type(entry)
    if kind is bool:
        return f"--[no-]{entry.name}"
    return " ".join([f"--{entry.name}"] + [entry.metadata.get("metavar", METAVARS[kind])] * (count or 1))


def _right(entry, presets):
    text = entry.metadata["help"]
    if "choices" in entry.metadata:
        text = f"{' | '.join(entry.metadata['choices'])}: {text}"
    if entry.default is dataclasses.MISSING:
        return text
    if entry.name in presets:
        words = [name if value is True else f"{name} {value_text(value)}" for name, value in presets[entry.name].items()]
        return f"{text}: {', '.join(words)}"
    implied = [f"{value_text(values[entry.name])} with -{name}" for name, values in presets.items() if entry.name in values]
    return f"{text} [{'; '.join([_default_text(entry), *implied])}]"


def _default_text(entry):
    if "sizes" in entry.metadata:
        return "{}; {} on a CPU".format(*entry.metadata["sizes"])
    return entry.metadata.get("automatic") or value_text(entry.default)


def _groups(options, columns):
    """[(group, rows)], a row a list of up to `columns` (name with its mark, value)."""
    groups = {}
    for entry in flag_fields(options):
        mark = "+" if entry.name in options.given else "*" if entry.name in options.implied else " "
        groups.setdefault(entry.metadata["group"], []).append((mark + entry.name, value_text(getattr(options, entry.name))))
    return [(group, [cells[i : i + columns] for i in range(0, len(cells), columns)]) for group, cells in groups.items()]


def _plain_lines(groups):
    rows = [row for _, group_rows in groups for row in group_rows]
    widths = [
        (max(len(row[i][0]) for row in rows if i < len(row)), max(len(row[i][1]) for row in rows if i < len(row)))
        for i in range(max(map(len, rows)))
    ]
    lines = []
    for group, group_rows in groups:
        lines.append(group)
        for row in group_rows:
            cells = [f"{name:{widths[i][0]}} {value:{widths[i][1]}}" for i, (name, value) in enumerate(row)]
            lines.append("  ".join(["", *cells]).rstrip())
    return lines


def _rich_text(options, legend):
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size().columns
    columns = max(1, min(PLAIN_COLUMNS, width // CELL_WIDTH))
    table = Table(box=box.SIMPLE, show_header=False, caption=legend, caption_justify="left", pad_edge=False)
    styles = {"+": "bold green", "*": "cyan", " ": ""}
    for group, rows in _groups(options, columns):
        table.add_row(Text(group, style="bold"))
        for row in rows:
            table.add_row(*(Text(part, style=styles[name[0]]) for name, value in row for part in (name, value)))
        table.add_section()
    console = Console(width=width, force_terminal=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")
