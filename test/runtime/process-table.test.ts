import { spawnSync } from "node:child_process";
import { expect, it } from "vitest";
import { bundleFixture } from "../fixtures/bundle.js";

const looker = bundleFixture("process-looker");

it("the process table reports an error, and no process as dead, when no file descriptor is free", (ctx) => {
  if (spawnSync("prlimit", ["--version"]).status !== 0) return ctx.skip("needs prlimit");
  const { stdout, stderr } = spawnSync("prlimit", ["--nofile=64", process.execPath, looker], { encoding: "utf8" });
  expect(stderr).toBe("");
  const refusal = "FLEET_PROCESSES_UNREADABLE";
  expect(JSON.parse(stdout)).toEqual({
    identify: refusal,
    isAlive: refusal,
    listensOn: refusal,
    connectedPorts: refusal,
    processesOfLaunch: refusal,
    writersOf: refusal,
    after: true,
  });
});
