// A LoRA that the server has just saved appears in every open page's lists at once.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const CHANGED = "pastiche.loras_changed"; // sent by nodes/lora/folders.py

async function refresh() {
  try {
    await app.refreshComboInNodes();
  } catch (error) {
    // The page itself has told the user; the next refresh by hand mends it.
    console.warn("Pastiche: the lists of LoRAs could not be refreshed", error);
  }
}

app.registerExtension({
  name: "Pastiche.RefreshLoras",
  setup() {
    api.addEventListener(CHANGED, refresh);
  },
});
