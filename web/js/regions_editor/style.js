// @ts-check
// The style sheet of the regions editor, which uses the page's colours.
import { createElement } from "../dom.js";

const STYLE = `
.pastiche-regions { display: flex; flex-direction: column; gap: 5px; box-sizing: border-box;
  width: 100%; min-height: 400px; padding: 6px 8px; overflow: hidden; border-radius: 6px;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd);
  font: 12px/1.3 sans-serif; user-select: none; }
.pastiche-regions [hidden] { display: none !important; }
.pastiche-regions button, .pastiche-regions input { box-sizing: border-box; padding: 3px 5px;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 5px;
  background: var(--comfy-menu-bg, #353535); color: inherit; font: inherit; }
.pastiche-regions button { cursor: pointer; }
.pastiche-regions button:hover:enabled { filter: brightness(1.25); }
.pastiche-regions button[aria-pressed="true"] { border-color: #6ab0ff;
  background: color-mix(in srgb, #6ab0ff 30%, var(--comfy-menu-bg, #353535)); }
.pastiche-regions button:disabled, .pastiche-regions input:disabled { opacity: 0.45;
  cursor: default; }
.pastiche-regions :focus-visible { outline: 2px solid #6ab0ff; outline-offset: 1px; }
.pastiche-tools, .pastiche-list { display: flex; flex-wrap: wrap; gap: 4px; }
.pastiche-tools input { width: 52px; }
.pastiche-tools button:last-child { margin-left: auto; }
.pastiche-list { min-height: 25px; max-height: 54px; flex: none; overflow-y: auto; }
.pastiche-list button { max-width: 140px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; border-left: 5px solid var(--colour); }
.pastiche-stage-frame { flex: 1; min-height: 180px; display: flex; align-items: center;
  justify-content: center; container-type: size; }
.pastiche-stage { position: relative; width: min(100cqw, calc(100cqh * var(--aspect, 1)));
  container-type: size; overflow: hidden; touch-action: none; cursor: crosshair; outline: none;
  background-color: color-mix(in srgb, currentColor 9%, transparent); }
.pastiche-stage:focus-visible { box-shadow: inset 0 0 0 1px #6ab0ff; }
.pastiche-stage.pastiche-fixed { cursor: default; }
.pastiche-stage-picture { position: absolute; inset: 0; width: 100%; height: 100%;
  object-fit: fill; opacity: 0.75; pointer-events: none; }
.pastiche-stage-hint { position: absolute; inset: 0; display: grid; place-items: center;
  opacity: 0.6; pointer-events: none; }
.pastiche-grid::before { content: ""; position: absolute; inset: 0; pointer-events: none;
  opacity: 0.16; background-size: var(--across) var(--down); background-image:
  linear-gradient(to right, currentColor 1px, transparent 1px),
  linear-gradient(to bottom, currentColor 1px, transparent 1px); }
.pastiche-region { position: absolute; box-sizing: border-box; border: 2px solid var(--colour);
  background: color-mix(in srgb, var(--colour) 22%, transparent); cursor: move;
  touch-action: none; }
.pastiche-region[aria-pressed="true"] { z-index: 1; border-width: 3px;
  background: color-mix(in srgb, var(--colour) 36%, transparent); }
.pastiche-regions .pastiche-region:focus-visible { outline: 2px solid #fff;
  outline-offset: -5px; }
.pastiche-fixed .pastiche-region { cursor: default; border-style: dashed; }
.pastiche-region-name { position: absolute; left: 0; top: 0; max-width: 100%; padding: 0 4px;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; box-sizing: border-box;
  background: var(--colour); color: var(--ink); pointer-events: none; }
.pastiche-region[aria-pressed="true"] > .pastiche-region-name { padding-left: 13px; }
.pastiche-feathered::before, .pastiche-feathered::after { content: ""; position: absolute;
  pointer-events: none; border: 1px dashed var(--colour); }
.pastiche-feathered::before { inset: var(--reach); }
.pastiche-feathered::after { inset: calc(-1 * var(--reach) - 2px); }
.pastiche-handle { position: absolute; display: none; width: 10px; height: 10px;
  transform: translate(-50%, -50%); border: 1px solid #111; border-radius: 2px;
  background: #fff; touch-action: none; left: 50%; top: 50%; }
.pastiche-handle::after { content: ""; position: absolute; inset: -7px; }
.pastiche-region[aria-pressed="true"] > .pastiche-handle { display: block; }
.pastiche-fixed .pastiche-region > .pastiche-handle { display: none; }
.pastiche-handle[data-edges^="left"] { left: 4px; }
.pastiche-handle[data-edges^="right"] { left: calc(100% - 4px); }
.pastiche-handle[data-edges$="top"] { top: 4px; }
.pastiche-handle[data-edges$="bottom"] { top: calc(100% - 4px); }
.pastiche-handle[data-edges="left"], .pastiche-handle[data-edges="right"] { cursor: ew-resize; }
.pastiche-handle[data-edges="top"], .pastiche-handle[data-edges="bottom"] { cursor: ns-resize; }
.pastiche-handle[data-edges="left top"], .pastiche-handle[data-edges="right bottom"] {
  cursor: nwse-resize; }
.pastiche-handle[data-edges="right top"], .pastiche-handle[data-edges="left bottom"] {
  cursor: nesw-resize; }
.pastiche-drawn { position: absolute; box-sizing: border-box; border: 2px dashed currentColor;
  pointer-events: none; z-index: 2; }
.pastiche-fields { display: flex; flex-direction: column; gap: 4px; flex: none; }
.pastiche-field-row { display: flex; gap: 8px; }
.pastiche-field { display: flex; align-items: center; gap: 4px; flex: 1; min-width: 0; }
.pastiche-regions > .pastiche-field { flex: none; }
.pastiche-field input { flex: 1; width: 0; min-width: 0; user-select: text; }
.pastiche-shares .pastiche-field { flex-direction: column; align-items: stretch; gap: 1px; }
.pastiche-shares .pastiche-field input { width: 100%; flex: none; }
.pastiche-field.pastiche-field-color { flex: none; }
.pastiche-field-color input { flex: none; width: 34px; height: 24px; padding: 1px; }
.pastiche-regions textarea { flex: 1; min-height: 180px; box-sizing: border-box; resize: none;
  padding: 6px; border: 1px solid var(--border-color, #4e4e4e); border-radius: 5px;
  background: var(--comfy-menu-bg, #353535); color: inherit; font: 11px/1.4 monospace;
  white-space: pre; overflow: auto; user-select: text; }
.pastiche-note { display: flex; align-items: center; gap: 8px; overflow-wrap: anywhere; }
.pastiche-note span { flex: 1; }
.pastiche-note.pastiche-problem { color: #ff8a75; }
`;

export function addStyle() {
  if (document.getElementById("pastiche-regions-style")) return;
  const style = createElement("style", "", STYLE);
  style.id = "pastiche-regions-style";
  document.head.append(style);
}
