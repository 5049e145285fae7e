import { randomBytes } from "node:crypto";
import { closeSync, openSync, readdirSync, readFileSync, readSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, it } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { startWireModel } from "../fixtures/models/wire-model.js";

const PIECE = 1024 * 1024;

/** Whether a text is in the memory of a process. */
function isInMemory(pid: number, text: string): boolean {
  const memory = openSync(`/proc/${pid}/mem`, "r");
  try {
    return regionsOf(pid).some(([from, to]) => isInRegion(memory, from, to, text));
  } finally {
    closeSync(memory);
  }
}

/** The address ranges of the process's writable memory. */
function regionsOf(pid: number): [from: number, to: number][] {
  const lines = readFileSync(`/proc/${pid}/maps`, "utf8").split("\n");
  return lines.flatMap((line) => {
    const [, from, to] = /^([\da-f]+)-([\da-f]+) rw/.exec(line) ?? [];
    return from === undefined || to === undefined ? [] : [[Number.parseInt(from, 16), Number.parseInt(to, 16)]];
  });
}

function isInRegion(memory: number, from: number, to: number, text: string): boolean {
  const piece = Buffer.alloc(PIECE + text.length);
  for (let at = from; at < to; at += PIECE) {
    let bytes = 0;
    try {
      bytes = readSync(memory, piece, 0, Math.min(piece.length, to - at), at);
    } catch {
      return false; // the process has unmapped the region
    }
    if (piece.subarray(0, bytes).includes(text)) return true;
  }
  return false;
}

function filesWith(folder: string, text: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .map((name) => join(folder, name))
    .filter((path) => statSync(path, { throwIfNoEntry: false })?.isFile() === true)
    .filter((path) => readFileSync(path).includes(text));
}

it.skipIf(process.getuid?.() !== 0)("the memory of a server does not contain the provider's key (root)", async () => {
  const key = `sk-canary-${randomBytes(12).toString("hex")}`;
  await using model = await startWireModel(key);
  const fleet = await faultFleet({
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: `${model.origin}/v1`,
    COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
    MODEL_KEY: key,
  });
  await using library = await Fleet.open({ env: fleet.env, cwd: fleet.folder });
  const session = await library.sessions.create({ user: "alice" });
  expect(await library.sessions.send(session, "ping")).toMatchObject({ text: "pong" });
  const [server] = await library.servers.list();
  const pid = server?.pid ?? 0;
  expect(isInMemory(pid, session.sessionId)).toBe(true);
  expect(isInMemory(pid, key)).toBe(false);
  expect(readFileSync(`/proc/${pid}/environ`, "utf8")).not.toContain(key);
  // The folder also contains the server's log, which has the server's output.
  expect(filesWith(dirname(server?.home ?? ""), key)).toEqual([]);
});
