import { renameSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { openFileStore } from "../../src/store/file/file-store.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

it("the file store does not find a session under an id that differs only in case, even if the disk ignores case", async () => {
  const root = await temporaryRoot();
  const store = openFileStore(root);
  await store.sessions.create(sessionRecord("talk"));
  expect(await store.sessions.read("talk")).toMatchObject({ id: "talk" });
  // On a disk that ignores case, both names open the same folder.
  renameSync(join(root, "sessions", "talk"), join(root, "sessions", "Talk"));
  expect(await store.sessions.read("Talk")).toBeNull();
  await expect(store.sessions.update("Talk", (draft) => ++draft.turns)).rejects.toMatchObject({
    code: "FLEET_SESSION_NOT_FOUND",
  });
});
