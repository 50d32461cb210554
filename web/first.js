// Before anything is drawn: which tab is shown and in which theme. No module, so that the browser
// waits for it alone; the rest of the page may come late.

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
      // forbidden: as the system
    }
})();
