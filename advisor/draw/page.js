"use strict";
const graph = document.querySelector(".graph svg.chains");
const about = document.getElementById("about");
const parts = [...graph.querySelectorAll(".node, .edge")];

function light(chosen) {
  graph.classList.toggle("picked", chosen !== null);
  for (const part of parts) part.classList.toggle("lit", chosen !== null && chosen(part));
}

function ranks(part) {
  return (part.dataset.ranks || "").split(" ");
}

function touches(node) {
  const id = node.dataset.id;
  const near = new Set([id]);
  for (const part of parts) {
    if (part.dataset.first === id) near.add(part.dataset.then);
    if (part.dataset.then === id) near.add(part.dataset.first);
  }
  return (part) => (part.dataset.id ? near.has(part.dataset.id) : part.dataset.first === id || part.dataset.then === id);
}

function onTouch(element, start, end) {
  element.addEventListener("mouseenter", start);
  element.addEventListener("focus", start);
  element.addEventListener("mouseleave", end);
  element.addEventListener("blur", end);
}

for (const part of parts) {
  const title = part.querySelector("title");
  onTouch(part, () => {
    about.textContent = title.textContent;
    if (part.dataset.id && !part.matches(".refused, .idle")) light(touches(part));
  }, () => light(null));
}

for (const row of document.querySelectorAll("tr[data-rank]")) {
  onTouch(row, () => light((part) => ranks(part).includes(row.dataset.rank)), () => light(null));
}
