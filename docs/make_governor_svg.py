"""Draws docs/governor.svg from the trace that `magray bench governor --csv` writes.

    systemd-run --user --scope -p MemoryMax=512M \\
        magray --config docs/governor.toml bench governor --looks 60 --texts 200 --csv docs/governor.csv
    python3 docs/make_governor_svg.py docs/governor.csv docs/governor.svg
"""

import csv
import sys

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP = 900, 150, 80, 170, 44, 46
MIB = 1 << 20
CSS = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600;font-size:14px}.small{fill:#666}"
    "path{fill:none;stroke-width:2}.grid{stroke:#ddd;stroke-width:1}.a{stroke:#0b62a8}.b{stroke:#e07b00}"
    ".c{stroke:#777;stroke-width:1.5}.limit{stroke:#c0392b;stroke-width:1;stroke-dasharray:5 4}"
    "rect.back{fill:#fff}rect.phase{fill:#000;opacity:.05}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.small{fill:#aaa}rect.back{fill:#161b22}.grid{stroke:#333}"
    "rect.phase{fill:#fff;opacity:.06}.a{stroke:#58a6ff}.b{stroke:#ffa657}.c{stroke:#999}.limit{stroke:#ff7b72}}"
)


def nice(most):
    """The ends and steps of an axis."""
    step = 10 ** (len(str(int(most))) - 1)
    step = next(s for s in (step / 5, step / 2, step, step * 2) if most / s <= 5)
    return [step * i for i in range(int(most / step) + 1)]


def main(source, target):
    rows = list(csv.DictReader(open(source)))
    seconds = [int(row["seconds"]) for row in rows]
    end = seconds[-1] + seconds[1]
    numbers = lambda key, unit=1: [float(row[key]) / unit for row in rows]
    panels = [
        ("memory in use, % of the limit", 100, [("in use", "c", numbers("used_percent"), False)]),
        (
            "cached embeddings, MiB",
            None,
            [
                ("granted", "a", numbers("granted_bytes", MIB), True),
                ("held", "b", numbers("cached_bytes", MIB), False),
            ],
        ),
        (
            "vectors in open indexes, thousands",
            None,
            [
                ("stored", "c", numbers("stored", 1000), False),
                ("granted", "a", numbers("granted_vectors", 1000), True),
                ("held open", "b", numbers("held_vectors", 1000), True),
            ],
        ),
    ]
    height = TOP + len(panels) * (PANEL + GAP) + 10
    across = lambda second: LEFT + second / end * (WIDTH - LEFT - RIGHT)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Grants and use of cache and indexes while memory becomes short"><style>{CSS}</style>',
        f'<rect class="back" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="{LEFT}" y="18">What is granted while memory becomes short</text>',
    ]
    third = end / 3
    for at, name in enumerate(["the load grows", "other memory grows beside it", "that memory is free again"]):
        out.append(f'<text class="small" x="{across(at * third) + 6:.0f}" y="38">{name}</text>')
    for number, (title, most, lines) in enumerate(panels):
        top = TOP + number * (PANEL + GAP) + 20
        most = most or 1.08 * max(max(values) for _, _, values, _ in lines)
        down = lambda value: top + PANEL - value / most * PANEL
        width = across(2 * third) - across(third)
        out.append(f'<rect class="phase" x="{across(third):.1f}" y="{top}" width="{width:.1f}" height="{PANEL}"/>')
        out.append(f'<text x="{LEFT}" y="{top - 6}">{title}</text>')
        for tick in nice(most):
            y = down(tick)
            out.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            out.append(f'<text class="small" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        labels = []
        if number == 0:
            for value, name in [(65, "target 65%"), (85, "critical 85%")]:
                out.append(f'<path class="limit" d="M{LEFT} {down(value):.1f}H{WIDTH - RIGHT}"/>')
                labels.append((down(value), name))
        for name, kind, values, steps in lines:
            path = f"M{across(seconds[0]):.1f} {down(values[0]):.1f}"
            for second, value in zip(seconds[1:], values[1:]):
                path += f"H{across(second):.1f}V{down(value):.1f}" if steps else f"L{across(second):.1f} {down(value):.1f}"
            out.append(f'<path class="{kind}" d="{path}"/>')
            labels.append((down(values[-1]), name))
        # Labels that would lie over one another are moved apart.
        previous = 0
        for y, name in sorted(labels):
            previous = max(y + 4, previous + 14)
            out.append(f'<text x="{WIDTH - RIGHT + 8}" y="{previous:.1f}">{name}</text>')
        for minute in range(0, int(end / 60) + 1, 20):
            x = across(minute * 60)
            out.append(f'<text class="small" x="{x:.1f}" y="{top + PANEL + 16}" text-anchor="middle">{minute} min</text>')
    open(target, "w").write("\n".join(out) + "\n</svg>\n")


main(*sys.argv[1:])
