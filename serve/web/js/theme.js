// Runs before the first paint (a plain script in the head), so that a chosen theme never flashes.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("hustings.theme");
  } catch {
    // Storage is forbidden here: the system's preference decides.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
