// @ts-check
// Show a LoRA that the server has just saved in the lists of every open page.
import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";

const CHANGED = "pastiche.loras_changed"; // sent by the server after it has saved a LoRA

async function refresh() {
  try {
    await app.refreshComboInNodes();
  } catch (error) {
    // The page itself has told the user; the next refresh by hand repairs it.
    console.warn("Pastiche: the lists of LoRAs could not be refreshed", error);
  }
}

app.registerExtension({
  name: "Pastiche.RefreshLoras",
  setup() {
    api.addEventListener(CHANGED, refresh);
  },
});
