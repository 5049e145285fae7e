import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openFileStore } from "../../src/store/file/file-store.js";
import { describeStore } from "../contract/store.contract.js";

describeStore("file", async () => {
  const parent = await mkdtemp(join(tmpdir(), "copilotfleet-store-"));
  const root = join(parent, "state");
  return {
    store: openFileStore(root),
    reopen: async () => openFileStore(root),
    cleanup: () => rm(parent, { recursive: true, force: true }),
  };
});
