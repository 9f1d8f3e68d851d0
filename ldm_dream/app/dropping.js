// A folder that is dropped on the field is taken as if it was chosen: gradio itself takes only files.
() => {
  const asked = (ask) => new Promise((done, fail) => ask(done, fail));

  async function filesOf(entry) {
    if (entry.isFile) return [await asked((done, fail) => entry.file(done, fail))];
    const reader = entry.createReader(), inside = [];
    for (;;) {  // a browser gives them by the hundred
      const some = await asked((done, fail) => reader.readEntries(done, fail));
      if (!some.length) break;
      inside.push(...some);
    }
    return (await Promise.all(inside.map(filesOf))).flat();
  }

  document.addEventListener("drop", async (event) => {
    if (!event.target.closest("#pictures")) return;
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry());
    if (!entries.some((entry) => entry?.isDirectory)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const files = (await Promise.all(entries.filter(Boolean).map(filesOf))).flat();
    const chosen = new DataTransfer();
    files.filter((file) => !file.name.startsWith(".")).forEach((file) => chosen.items.add(file));
    const input = document.querySelector("input[webkitdirectory]");
    input.files = chosen.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }, true);
}
