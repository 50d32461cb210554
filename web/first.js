// Chooses the tab and the theme before anything is drawn. It is not a module, so the browser waits
// for this file only; the rest of the page may load later.

(() => {
  const root = document.documentElement;
  const wanted = location.hash.slice(1);
  root.dataset.tab = ["chat", "tokens", "inside", "runs"].includes(wanted) ? wanted : "complete";
  for (const storage of ["sessionStorage", "localStorage"])
    try {
      const theme = JSON.parse(window[storage].getItem("bonsai.theme"));
      if (!theme) continue;
      if (theme !== "auto") root.dataset.theme = theme;
      return;
    } catch {
      // storage is forbidden: the system's theme is used
    }
})();
