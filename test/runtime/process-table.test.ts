import { spawn, spawnSync } from "node:child_process";
import { expect, it, onTestFinished } from "vitest";
import { identify, ownIdentity, processesOfSession } from "../../src/runtime/process/process-table.js";
import { bundleFixture } from "../fixtures/bundle.js";

const looker = bundleFixture("process-looker");

it.skipIf(spawnSync("prlimit", ["--version"]).error !== undefined)(
  "the process table throws instead of reporting processes as dead when no file descriptor is free",
  () => {
    const args = ["--nofile=64", process.execPath, looker];
    const { stdout, stderr } = spawnSync("prlimit", args, { encoding: "utf8" });
    expect(stderr).toBe("");
    const refusal = "FLEET_FILES_EXHAUSTED";
    expect(JSON.parse(stdout)).toEqual({
      identify: refusal,
      isAlive: refusal,
      listensOn: refusal,
      connectedPorts: refusal,
      processesOfLaunch: refusal,
      writersOf: refusal,
      after: true,
    });
  },
);

it("processesOfSession ignores a process session to which the server itself does not belong", async () => {
  const stranger = spawn("sleep", ["600"], { detached: true });
  onTestFinished(() => void stranger.kill("SIGKILL"));
  const leader = identify(stranger.pid ?? 0);
  if (leader === null) throw new Error("sleep did not start");
  expect(processesOfSession(leader).map(({ pid }) => pid)).toEqual([leader.pid]);
  // An agent may have chosen `innerPid`, here the PID of the stranger. The stranger's processes must not be returned.
  expect(processesOfSession({ ...ownIdentity(), innerPid: leader.pid })).toEqual([]);
});
