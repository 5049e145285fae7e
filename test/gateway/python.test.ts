import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, it } from "vitest";
import { DoorFleet } from "./harness.js";

const SCRIPT = fileURLToPath(new URL("../fixtures/client.py", import.meta.url));

it("serves a client in another language, with nothing but sockets", async () => {
  await using at = await DoorFleet.open({ from: 36_695, to: 36_699 });
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
  expect(await at.store.readSession("from-python")).toBeNull();
});
