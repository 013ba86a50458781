// Building and updating elements. Text only ever goes in as text: nothing here takes markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with attributes and children (elements or text). */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) set(node, name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Set an attribute if it differs; null, undefined and false take it away. */
export function set(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value === true ? "" : value);
}

/** Set an element's text if it differs: what has not changed is not announced, selected or painted again. */
export function say(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Make the children of `parent` those of `items`, in order, keeping the element of a key that stays. */
export function keyed(parent, items, keyOf, make, update) {
  const kept = (parent.kept ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, node] of kept) {
    if (!wanted.has(key)) {
      node.remove();
      kept.delete(key);
    }
  }
  const focused = document.activeElement;
  let cursor = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    let node = kept.get(key);
    if (!node) kept.set(key, (node = make(item)));
    update(node, item);
    if (node === cursor) cursor = cursor.nextSibling;
    else parent.insertBefore(node, cursor);
  }
  // An element that is moved loses the focus.
  if (focused && focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true });
  parent.rove?.();
}

const STEPS = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };

/** Make the buttons of a table's rows one stop of the Tab key: the arrow keys, Home and End go from row to row. */
function roving(body) {
  let stop = null;
  const buttons = () => [...body.querySelectorAll("button")];
  body.rove = (wanted = stop) => {
    const all = buttons();
    stop = all.includes(wanted) ? wanted : all[0];
    for (const button of all) set(button, "tabindex", button === stop ? null : -1);
  };
  body.addEventListener("focusin", (event) => body.rove(event.target));
  body.addEventListener("keydown", (event) => {
    const all = buttons();
    const at = all.indexOf(event.target);
    if (at < 0 || !(event.key in STEPS)) return;
    event.preventDefault();
    all[Math.min(Math.max(at + STEPS[event.key], 0), all.length - 1)].focus();
  });
}

/** A table's head from columns {name, title, number, sort, minor}; returns its body, whose rows are one Tab stop. */
export function table(node, caption, columns, onSort) {
  const cells = columns.map((column) => {
    const cell = el("th", { scope: "col", class: classes(column), title: column.title });
    if (column.sort && onSort) {
      const button = el("button", { type: "button" }, column.name);
      button.addEventListener("click", () => onSort(column.id));
      cell.append(button);
    } else cell.append(column.name);
    return cell;
  });
  const body = el("tbody");
  roving(body);
  node.replaceChildren(el("caption", { class: "unseen" }, caption), el("thead", {}, el("tr", {}, ...cells)), body);
  return { body, cells };
}

/** The class names of a column's cells. */
export function classes(column) {
  const names = [column.number && "number", column.minor && "minor", column.id].filter(Boolean).join(" ");
  return names || null;
}

/** A bar of a share between 0 and 1, beside a text that says the same. */
export function bar() {
  return el("span", { class: "bar", "aria-hidden": "true" }, el("i"));
}

export function setBar(node, share, alarming = false) {
  node.firstChild.style.inlineSize = `${Math.round(Math.min(Math.max(share, 0), 1) * 1000) / 10}%`;
  node.classList.toggle("alarming", alarming);
}
