import { expect, it, vi } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import { NO_SANDBOX } from "../../src/base/sandbox.js";
import { system } from "../../src/base/system/system.js";
import { createServerFolder, homeOf } from "../../src/runtime/files/server-folder.js";
import { launchServer } from "../../src/runtime/launch/launch.js";
import { ensureStateFolder } from "../../src/store/file/state-folder.js";
import { fake } from "../fixtures/fleets/fault-fleet.js";
import { processesWith } from "../fixtures/processes.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

it("launchServer kills the process that it has started if it cannot read the process table", async () => {
  const stateRoot = await temporaryRoot();
  ensureStateFolder(stateRoot);
  const home = homeOf(stateRoot, "alice");
  createServerFolder(home);
  const unreadable = new FleetError("FLEET_FILES_EXHAUSTED", "The processes cannot be read.");
  const look = vi.spyOn(system().processes, "find").mockImplementationOnce(() => {
    throw unreadable;
  });
  const launch = {
    server: { address: "127.0.0.1", home, cwd: home },
    launchId: "launch",
    runtimePath: fake("silent.mjs"),
    port: 1,
    connectionToken: "token",
    githubToken: null,
    settings: { path: null, args: [], env: [] },
    stateRoot,
    sandbox: { ...NO_SANDBOX, wrap: (command: [string, ...string[]]) => command, remember: async () => undefined },
    copilotHome: home,
    sessionState: null,
    env: process.env,
  };
  try {
    await expect(launchServer(launch, new AbortController().signal)).rejects.toBe(unreadable);
  } finally {
    look.mockRestore();
  }
  expect(processesWith(`COPILOT_HOME=${home}`)).toEqual([]);
});
