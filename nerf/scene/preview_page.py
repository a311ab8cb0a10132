"""The page of --vis_pose: one file that draws a scene's cameras, points and boxes in any browser, without a network, a server or a GPU.

It draws on a plain 2-D canvas: that works in every browser, also where WebGL is switched off or there is no driver, and needs no library.
"""

import base64
import json

import numpy as np

SLOT = "/*SCENE*/null"


def page(title, groups, boxes, points, bound):
    """The page as text.

    Args:
        title: str. groups: name -> (colour "#rrggbb", labels [n], frusta [n,5,3] = the apex, then the corners of the picture in turn).
        boxes: name -> (colour, segments [s,2,3]). points: [p,3]. bound: half the side of the cube that is seen at first.
    """

    def rounded(array):
        return np.round(np.asarray(array, dtype=np.float64), 5).tolist()

    content = {
        "title": title, "bound": float(bound),
        "cameras": [{"name": name, "colour": colour, "labels": list(labels), "frusta": rounded(frusta.reshape(-1, 15))}
                    for name, (colour, labels, frusta) in groups.items()],
        "boxes": [{"name": name, "colour": colour, "lines": rounded(lines.reshape(-1, 6))} for name, (colour, lines) in boxes.items()],
        "points": base64.b64encode(np.ascontiguousarray(points, dtype="<f4").tobytes()).decode(),
    }  # fmt: skip
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")  # a name must not end the script
    return PAGE.replace(SLOT, text)


PAGE = r"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Cameras</title>
<style>
  html, body { margin: 0; height: 100%; overflow: hidden; background: #fff; color: #222; font: 13px sans-serif; }
  canvas { position: absolute; width: 100%; height: 100%; cursor: grab; touch-action: none; }
  #panel { position: absolute; left: 10px; top: 8px; background: #ffffffd0; padding: 6px 10px; border-radius: 6px; }
  #panel label { display: block; cursor: pointer; line-height: 1.6; }
  #panel i { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin: 0 5px -2px 2px; }
  #title { font-weight: bold; margin-bottom: 3px; } #help { color: #666; margin-top: 4px; }
  #tip { position: absolute; display: none; background: #222; color: #fff; padding: 4px 8px; border-radius: 4px; pointer-events: none; white-space: pre; }
</style></head><body><canvas id="canvas"></canvas>
<div id="panel"><div id="title"></div><div id="layers"></div>
<div id="help">drag: turn &middot; right drag: move &middot; wheel: zoom<br>click a camera: turn about it &middot; double click: as at first</div></div><div id="tip"></div>
<script>
"use strict";
const scene = /*SCENE*/null;
const canvas = document.getElementById("canvas"), context = canvas.getContext("2d"), tip = document.getElementById("tip");
const points = new Float32Array(Uint8Array.from(atob(scene.points), c => c.charCodeAt(0)).buffer);
const axes = [["x", "#d33"], ["y", "#2a2"], ["z", "#33d"]].map(([name, colour], i) => ({name, colour, line: [0, 0, 0, ...[0, 1, 2].map(k => +(k === i) * scene.bound / 4)]}));
const hidden = new Set();
const start = () => ({turn: -0.9, tilt: 0.5, distance: 4.2 * reach, centre: [0, 0, 0]});
// What is worth seeing at first: the cameras and most of the points, rather than a cube that may be far larger.
const radii = [...scene.cameras.flatMap(g => g.frusta.map(f => Math.hypot(f[0], f[1], f[2])))];
const reach = Math.min(scene.bound * 1.2, 1.5 * Math.max(...radii, 1e-3));
let view = start(), shown = [], chosen = null, wanted = false;

function project(x, y, z) {
  const [sin, cos, up, flat] = [Math.sin(view.turn), Math.cos(view.turn), Math.sin(view.tilt), Math.cos(view.tilt)];
  x -= view.centre[0]; y -= view.centre[1]; z -= view.centre[2];
  const along = -x * cos - y * sin, depth = view.distance + along * flat - z * up, near = view.distance * 1e-3;
  return [-x * sin + y * cos, z * flat + along * up, depth, near];
}
function onScreen(p) { const f = canvas.height * 1.2 / p[2]; return [canvas.width / 2 + p[0] * f, canvas.height / 2 - p[1] * f]; }
function line(a, b) {  // clipped where it passes behind the eye
  let p = project(...a), q = project(...b);
  if (p[2] < p[3] && q[2] < q[3]) return;
  if (p[2] < p[3]) [p, q] = [q, p];
  if (q[2] < q[3]) { const t = (p[2] - p[3]) / (p[2] - q[2]); q = [p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1]), p[3]]; }
  context.moveTo(...onScreen(p)); context.lineTo(...onScreen(q));
}
function stroke(colour, width, draw) { context.beginPath(); context.strokeStyle = colour; context.lineWidth = width * devicePixelRatio; draw(); context.stroke(); }
function frustum(f) {
  const at = k => f.slice(3 * k, 3 * k + 3);
  for (let k = 1; k < 5; k++) { line(at(0), at(k)); line(at(k), at(k % 4 + 1)); }
}
function drawPoints() {
  const size = Math.max(1, 1.3 * devicePixelRatio), shades = [[], [], [], []];
  for (let i = 0; i < points.length; i += 3) {
    const p = project(points[i], points[i + 1], points[i + 2]);
    if (p[2] > p[3]) shades[Math.max(0, Math.min(3, Math.floor(2 * p[2] / view.distance)))].push(onScreen(p));
  }
  shades.reverse().forEach((list, i) => { context.fillStyle = ["#c8c8c8", "#aaa", "#888", "#666"][i]; for (const [x, y] of list) context.fillRect(x, y, size, size); });
}
function draw() {
  wanted = false;
  [canvas.width, canvas.height] = [innerWidth * devicePixelRatio, innerHeight * devicePixelRatio];
  if (!hidden.has("points")) drawPoints();
  for (const box of scene.boxes) if (!hidden.has(box.name)) stroke(box.colour, 1, () => box.lines.forEach(l => line(l.slice(0, 3), l.slice(3))));
  if (!hidden.has("axes")) for (const axis of axes) {
    stroke(axis.colour, 2, () => line(axis.line.slice(0, 3), axis.line.slice(3)));
    const end = project(...axis.line.slice(3));
    if (end[2] > end[3]) { context.fillStyle = axis.colour; context.font = `${13 * devicePixelRatio}px sans-serif`; context.fillText(axis.name, ...onScreen(end)); }
  }
  shown = [];
  for (const group of scene.cameras) if (!hidden.has(group.name)) {
    stroke(group.colour, 1, () => group.frusta.forEach(frustum));
    group.frusta.forEach((f, i) => { const p = project(f[0], f[1], f[2]); if (p[2] > p[3]) shown.push({at: onScreen(p), group, i, depth: p[2]}); });
  }
  if (chosen) stroke("#f80", 3, () => frustum(chosen.group.frusta[chosen.i]));
}
function redraw() { if (!wanted) { wanted = true; requestAnimationFrame(draw); } }
function nearest(event) {
  let best = null, least = 14 * devicePixelRatio;
  for (const camera of shown) {
    const distance = Math.hypot(camera.at[0] - event.clientX * devicePixelRatio, camera.at[1] - event.clientY * devicePixelRatio);
    if (distance < least) [best, least] = [camera, distance];
  }
  return best;
}
function hover(event) {
  const camera = nearest(event);
  if (camera) {
    const f = camera.group.frusta[camera.i], [x, y, z] = f;
    tip.textContent = `${camera.group.labels[camera.i]} (${camera.group.name})\nat ${x.toFixed(3)}, ${y.toFixed(3)}, ${z.toFixed(3)}; ${Math.hypot(x, y, z).toFixed(3)} from the centre`;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 260)}px`; tip.style.top = `${event.clientY + 14}px`;
  }
  tip.style.display = camera ? "block" : "none";
  if ((camera && camera.i) !== (chosen && chosen.i) || (camera && camera.group) !== (chosen && chosen.group)) { chosen = camera; redraw(); }
}
let held = null, moved = 0;
canvas.addEventListener("pointerdown", event => { held = event; moved = 0; canvas.setPointerCapture(event.pointerId); });
canvas.addEventListener("pointermove", event => {
  if (!held) return hover(event);
  const dx = event.clientX - held.clientX, dy = event.clientY - held.clientY;
  moved += Math.abs(dx) + Math.abs(dy);
  if (event.buttons & 2 || event.shiftKey) {
    const s = view.distance / (1.2 * innerHeight), [sin, cos, up, flat] = [Math.sin(view.turn), Math.cos(view.turn), Math.sin(view.tilt), Math.cos(view.tilt)];
    view.centre[0] += s * (dx * sin - dy * up * cos); view.centre[1] += s * (-dx * cos - dy * up * sin); view.centre[2] += s * dy * flat;
  } else {
    view.turn -= dx * 0.006; view.tilt = Math.max(-1.57, Math.min(1.57, view.tilt + dy * 0.006));
  }
  held = event; tip.style.display = "none"; redraw();
});
canvas.addEventListener("pointerup", event => {
  held = null;
  const camera = moved < 4 && nearest(event);
  if (camera) { view.centre = camera.group.frusta[camera.i].slice(0, 3); redraw(); }
});
canvas.addEventListener("wheel", event => { event.preventDefault(); view.distance *= Math.exp(event.deltaY * 0.0012); redraw(); }, {passive: false});
canvas.addEventListener("dblclick", () => { view = start(); redraw(); });
canvas.addEventListener("contextmenu", event => event.preventDefault());
addEventListener("resize", redraw);
document.title = document.getElementById("title").textContent = scene.title;
for (const [name, colour] of [...scene.cameras.map(g => [g.name, g.colour]), ["points", "#888"], ...scene.boxes.map(b => [b.name, b.colour]), ["axes", "#d33"]]) {
  const label = document.createElement("label"), box = document.createElement("input"), swatch = document.createElement("i");
  box.type = "checkbox"; box.checked = true; swatch.style.background = colour;
  box.addEventListener("change", () => { box.checked ? hidden.delete(name) : hidden.add(name); redraw(); });
  label.append(box, swatch, name);
  document.getElementById("layers").append(label);
}
draw();
</script></body></html>
"""
