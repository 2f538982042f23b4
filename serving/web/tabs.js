/** Tabs whose views are named by the address' hash; arrow keys, Home and End as in the ARIA practices. */

const tabs = [...document.querySelectorAll("[role=tab]")];
const STEPS = { ArrowLeft: (at) => at - 1, ArrowRight: (at) => at + 1, Home: () => 0, End: () => -1 };

/** Calls `opened(view)` now and whenever another view is chosen. */
export function startTabs(opened) {
  const open = () => {
    const chosen = tabs.find((tab) => location.hash === `#${tab.dataset.view}`) ?? tabs[0];
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
    opened(chosen.dataset.view);
  };
  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => (location.hash = tab.dataset.view));
    tab.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      if (!step) return;
      event.preventDefault();
      const next = tabs.at(step(index) % tabs.length);
      next.focus();
      location.hash = next.dataset.view;
    });
  }
  addEventListener("hashchange", open);
  open();
}
