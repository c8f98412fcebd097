"use strict";
// A sequence of frames gets a slider; without this script all of them are shown.
for (const sequence of document.querySelectorAll(".frames")) {
  const frames = [...sequence.children];
  const slider = document.createElement("input");
  slider.type = "range";
  slider.max = frames.length - 1;
  slider.value = slider.max;
  slider.setAttribute("aria-label", "frame");
  const show = () => {
    frames.forEach((frame, i) => { frame.hidden = i !== Number(slider.value); });
    slider.setAttribute("aria-valuetext", frames[slider.value].textContent.trim());
  };
  slider.addEventListener("input", show);
  sequence.before(slider);
  show();
}
// A click shows an image as large as the window; a click or Escape closes it.
const dialog = document.body.appendChild(document.createElement("dialog"));
dialog.addEventListener("click", () => dialog.close());
for (const image of document.querySelectorAll(".lesson figure img")) {
  const open = () => {
    const large = image.cloneNode();
    large.removeAttribute("tabindex");
    large.removeAttribute("role");
    dialog.replaceChildren(large);
    dialog.showModal();
  };
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  image.title = "enlarge";
  image.addEventListener("click", open);
  image.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
}
