#!/usr/bin/env python3
"""Draws latency against offered load: plot.py FILE > FILE.svg, where FILE is what casemate-load --offered ... --json printed."""

import json
import math
import sys

run = json.load(open(sys.argv[1]))
signer = run["signers"][0]
points = sorted(
    (float(name.removeprefix("offered_")), row) for name, row in signer.items() if name.startswith("offered_")
)
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 420, 70, 40, 150, 60
most = max(share for share, _ in points) * 1.05
low, high = -1, 3  # decades of milliseconds


def x(share):
    return LEFT + share / most * (WIDTH - LEFT - RIGHT)


def y(ms):
    return TOP + (high - math.log10(max(ms, 10**low))) / (high - low) * (HEIGHT - TOP - BOTTOM)


out = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
    f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    f'<text x="{LEFT}" y="22" font-size="15">Latency from the intended send time, one root per slot, {run["connections"]} connections</text>',
]
for decade in range(low, high + 1):
    at, label = y(10**decade), f"{10**decade:g} ms"
    out.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/><text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
for share, _ in points:
    out.append(f'<path d="M{x(share):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/><text x="{x(share):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{share:g}</text>')
out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 16}" text-anchor="middle">offered load, of what raw blst signs on {run["threads"]} threads ({run["raw_blst_per_s"]:.0f}/s)</text>')
for number, (key, label, colour) in enumerate([("p50_ms", "p50", "#1b6ca8"), ("p99_ms", "p99", "#d9822b"), ("p99_9_ms", "p99.9", "#b23a48")]):
    line = " ".join(f"{x(share):.1f},{y(row[key]):.1f}" for share, row in points)
    out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    out += [f'<circle cx="{x(share):.1f}" cy="{y(row[key]):.1f}" r="3" fill="{colour}"/>' for share, row in points]
    at = TOP + 20 + 22 * number
    out.append(f'<path d="M{WIDTH - RIGHT + 20} {at}h24" stroke="{colour}" stroke-width="2"/><text x="{WIDTH - RIGHT + 50}" y="{at + 4}">{label}</text>')
out.append("</svg>")
print("\n".join(out))
