/** The page: two views, one source of the server's numbers. */

import { byId } from "./dom.js";
import { startDashboard } from "./dashboard.js";
import { every, onStats } from "./stats.js";
import { startTabs } from "./tabs.js";
import { startTrying } from "./try.js";

onStats((stats, error) => {
  if (stats) document.title = byId("model").textContent = stats.model;
  const ready = stats?.versions.some((version) => version.state === "AVAILABLE");
  const trouble = error?.status === 401 ? "key needed" : error ? "no answer" : "not ready";
  byId("state").textContent = ready ? "ready" : trouble;
  byId("state").dataset.state = ready ? "good" : "bad";
});
startTrying();
startDashboard();
startTabs((view) => every(view === "live" ? 1000 : 10000));
