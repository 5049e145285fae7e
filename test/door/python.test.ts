import { execFile, spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, it } from "vitest";
import { DoorFleet } from "./harness.js";

const SCRIPT = fileURLToPath(new URL("../fixtures/sessions/client.py", import.meta.url));

const hasPython = spawnSync("python3", ["--version"], { stdio: "ignore" }).status === 0;
if (!hasPython) console.warn("the client in Python is skipped: there is no python3");

it.skipIf(!hasPython)("the front door serves a Python client that uses only sockets and no SDK", async () => {
  await using at = await DoorFleet.open();
  const token = await at.token("zoë");
  const running = promisify(execFile)("python3", [SCRIPT, at.url], { timeout: 30_000 });
  running.child.stdin?.end(`${token}\n`);
  const { stdout } = await running;
  expect(JSON.parse(stdout)).toEqual({
    protocolVersion: 3,
    replies: ["you said: hello", "tool said: python says früh", "you said: and again"],
    prompts: 3,
    refused: "FLEET_METHOD_DENIED",
  });
  expect(await at.store.sessions.read("from-python")).toBeNull();
});
