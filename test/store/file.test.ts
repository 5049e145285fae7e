import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openStore } from "../../src/store/store.js";
import { describeStore } from "../contract/store.contract.js";

describeStore("file", async () => {
  const parent = await mkdtemp(join(tmpdir(), "copilotfleet-store-"));
  const root = join(parent, "state");
  return {
    store: openStore("file", root),
    reopen: async () => openStore("file", root),
    cleanup: () => rm(parent, { recursive: true, force: true }),
  };
});
