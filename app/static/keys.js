// Keyboard shortcuts of the arena: they press the buttons that are on the screen, and nothing while one is typing.
(() => {
  const buttons = {
    ArrowLeft: "vote-left", ArrowRight: "vote-right", ArrowDown: "vote-tie",
    n: "next-pair", Enter: "next-pair", s: "skip-pair", u: "undo-pick",
    1: "pick-0", 2: "pick-1", 3: "pick-2", 4: "pick-3",
  };
  const choices = { q: ["left-ok", 0], a: ["left-ok", 1], o: ["right-ok", 0], l: ["right-ok", 1] };
  const seen = (node) => node && node.offsetParent !== null;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const target = event.target;
    if (target.closest("textarea, select, [contenteditable=true], [role=listbox], [role=slider]")) return;
    if (target.tagName === "INPUT" && !["radio", "checkbox"].includes(target.type)) return;
    const arena = document.getElementById("arena");
    if (!seen(arena)) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    // A tab that was just clicked keeps the focus; elsewhere Enter presses what has it.
    if (key === "Enter" && target.closest("button, a, input") && !target.closest("[role=tab]")) return;
    let node = null;
    if (key in buttons) {
      node = document.getElementById(buttons[key]);
      if (key === "Enter" && !seen(node)) node = document.getElementById("submit-order");
      if (node && node.tagName !== "BUTTON") node = node.querySelector("button");
      if (!seen(node) || node.disabled) return;
    } else if (key in choices) {
      const [id, place] = choices[key];
      const group = document.getElementById(id);
      if (!seen(group)) return;
      node = group.querySelectorAll("input[type=radio]")[place];
    }
    if (!node || node.disabled) return;
    event.preventDefault();
    node.click();
  });
})();
