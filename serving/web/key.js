/** The API key: asked for when the server wants one, kept for this tab only. A "key" event tells of a new one. */

import { byId } from "./dom.js";

const NAME = "api-key";

export const apiKey = () => sessionStorage.getItem(NAME);

/** Shows the field for the key, with the server's message. */
export function needKey(message) {
  byId("key-why").textContent = message;
  byId("key").hidden = false;
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(NAME, byId("key-field").value.trim());
  byId("key-field").value = "";
  byId("key").hidden = true;
  document.dispatchEvent(new Event("key"));
});
