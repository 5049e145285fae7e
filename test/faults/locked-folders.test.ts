import { chmodSync, chownSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { sessionFolderPath } from "../../src/runtime/history/session-state.js";
import { fleetAs } from "../fixtures/fleets/user-fleet.js";

// Root ignores the rights of folders.
it("delete, gc and user purge remove folders whose rights the agent has removed, as an ordinary user", async () => {
  const { fleet, user, run: how } = await fleetAs("an ordinary user", { COPILOTFLEET_SANDBOX_MODE: "none" });
  const run = async (...args: string[]) => await fleet.ok(args, how);
  const lock = (...folders: string[]) => {
    const made = folders.map((folder) => join(folder, "d"));
    for (const folder of made) {
      mkdirSync(folder);
      writeFileSync(join(folder, "f"), "");
      if (user !== null) chownSync(folder, user.uid, user.uid);
    }
    for (const folder of [...made, ...folders]) chmodSync(folder, 0);
  };
  for (const id of ["deleted", "old"]) await run("create", "--user", "alice", "--id", id, "--prompt", "hello");
  const { servers } = JSON.parse(await run("ps", "--json")) as { servers: { home: string }[] };
  const home = servers[0]?.home ?? "";
  await run("stop", "--all");
  for (const id of ["deleted", "old"]) lock(sessionFolderPath(home, id));
  await run("delete", "deleted", "--user", "alice");
  expect(existsSync(sessionFolderPath(home, "deleted"))).toBe(false);
  await run("gc", "--ttl", "1ms", "--yes");
  expect(existsSync(sessionFolderPath(home, "old"))).toBe(false);
  await run("create", "--user", "alice", "--id", "purged", "--prompt", "hello");
  await run("stop", "--all");
  lock(sessionFolderPath(home, "purged"));
  lock(home);
  await run("user", "purge", "alice", "--yes");
  expect(existsSync(home)).toBe(false);
});
