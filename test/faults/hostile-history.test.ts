import { closeSync, openSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { expect, it } from "vitest";
import { historyPath } from "../../src/runtime/history/session-state.js";
import { ask } from "../api/harness.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { serve } from "../fixtures/fleets/serve.js";

const MEGABYTE = 1024 * 1024;
/**
 * The longest time that an answer of `/healthz` may take, in milliseconds. On an idle machine it takes less than 250 ms.
 * Without the limits on histories, each of these histories stopped the process for 20 s to minutes.
 */
const LONGEST_MS = 5_000;
const fleet = testFleet({ COPILOTFLEET_SERVE_LOG_LEVEL: "warn" });

/** Writes this text again and again. */
function fill(path: string, text: string, bytes: number): void {
  const piece = Buffer.alloc(MEGABYTE, text);
  const fd = openSync(path, "w");
  for (let left = bytes; left > 0; left -= MEGABYTE) writeSync(fd, piece, 0, Math.min(left, MEGABYTE));
  closeSync(fd);
}

/** Asks again and again until it is disposed, and keeps the longest time that an answer took. */
function pings(url: string): AsyncDisposable & { longestMs: number } {
  let goesOn = true;
  const result = {
    longestMs: 0,
    [Symbol.asyncDispose]: async () => {
      goesOn = false;
      await asking;
    },
  };
  const asking = (async () => {
    while (goesOn) {
      const begun = performance.now();
      const { status } = await ask(url, "GET", "/healthz");
      result.longestMs = Math.max(result.longestMs, performance.now() - begun);
      expect(status).toBe(200);
      await delay(20);
    }
  })();
  return result;
}

const tooLong = { status: 409, code: "FLEET_SESSION_LOST" };
const whole = { status: 200, code: undefined };

it.each<[string, (path: string) => void, { status: number; code: string | undefined }]>([
  [
    "a sparse file of 8 GB",
    (path) => {
      writeFileSync(path, "");
      truncateSync(path, 8 * 1024 * MEGABYTE);
    },
    tooLong,
  ],
  ["300 MB of zeros on the disk", (path) => fill(path, "\0", 300 * MEGABYTE), tooLong],
  ["64 MB of zeros on the disk", (path) => fill(path, "\0", 64 * MEGABYTE), whole],
  ["8 MB of empty lines", (path) => fill(path, "\n", 8 * MEGABYTE), whole],
  ["2 MB of short lines that are almost events", (path) => fill(path, '{"type":"abort","id"x}\n', 2 * MEGABYTE), whole],
  [
    "one event with millions of values",
    (path) => writeFileSync(path, `{"id":"a","type":"x","data":[${"{},".repeat(5 * MEGABYTE)}{}]}\n`),
    whole,
  ],
  [
    "a turn with 50,000 tool calls",
    (path) => {
      const timestamp = new Date().toISOString();
      const call = (data: object) => `${JSON.stringify({ type: "tool.execution_start", data, id: "a", timestamp })}\n`;
      const calls = Array.from({ length: 50_000 }, (_, at) => call({ toolCallId: `${at}`, toolName: "bash" }));
      writeFileSync(path, calls.join(""));
    },
    whole,
  ],
])("serve goes on answering everybody while a user reads a history of %s", async (name, write, expected) => {
  await using serving = Object.assign(await serve(fleet, { args: ["--http", "127.0.0.1:0"] }), {
    [Symbol.asyncDispose]: async () => void (await serving.end()),
  });
  const url = String((await serving.logged("serving")).http);
  const { token } = await fleet.json<{ token: string }>(["token", "issue", "--user", "alice"]);
  const { id } = (await ask(url, "POST", "/v1/sessions", { token })).json.session;
  const turn = async (signal?: AbortSignal) =>
    await ask(url, "POST", `/v1/sessions/${id}/turns`, {
      token,
      body: { prompt: "hello" },
      ...(signal === undefined ? {} : { signal }),
    });
  expect((await turn()).status).toBe(200);
  write(historyPath((await fleet.record("alice")).home, id));
  const idle = pings(url);
  {
    await using _ = idle;
    await delay(process.env.SHOW_PINGS === undefined ? 0 : 3_000);
  }
  const answers = pings(url);
  {
    await using _ = answers;
    const path = `/v1/sessions/${id}`;
    const [transcript, last, events] = await Promise.all([
      ask(url, "GET", `${path}/transcript`, { token }),
      ask(url, "GET", `${path}/transcript?turns=1`, { token }),
      ask(url, "GET", `${path}/events?follow=false`, { token }),
    ]);
    for (const reply of [transcript, last, events])
      expect({ status: reply.status, code: reply.json?.code }).toEqual(expected);
    expect((await ask(url, "GET", "/v1/sessions", { token })).status).toBe(200);
    // The user's own server may fail on its history. Nobody else may notice it.
    await turn(AbortSignal.timeout(3_000)).catch(() => null);
  }
  if (expected === tooLong) {
    const { message } = await fleet.refusal(5, ["transcript", id, "--user", "alice"]);
    expect(message).toMatch(/^The history of session ".+" has \d+ bytes to read. The fleet reads at most 268435456 bytes.$/);
    await fleet.ok(["list", "--user", "alice"]);
    await fleet.ok(["gc", "--dry-run"]);
    await fleet.run(["delete", id, "--user", "alice"]);
  }
  if (process.env.SHOW_PINGS !== undefined)
    console.log(`${name}: ${Math.round(answers.longestMs)} ms, before it ${Math.round(idle.longestMs)} ms`);
  expect(answers.longestMs).toBeLessThan(LONGEST_MS);
});
