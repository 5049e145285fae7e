import { expect, it } from "vitest";
import { historyPath } from "../../src/runtime/history/session-state.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { serve } from "../fixtures/fleets/serve.js";
import { HOSTILE_HISTORIES, pings, readsOf } from "../fixtures/sessions/hostile-histories.js";
import { processorMs } from "../fixtures/stopwatch.js";
import { ask } from "../http/harness.js";

/**
 * The most processor time that `serve` may use until it answers `/healthz`, in milliseconds. An answer takes less than
 * 250 ms (`bench/hostile-history.ts`). Without the limits on histories, each of these histories stopped the process for
 * 20 s to minutes.
 */
const MOST_MS = 2_000;
const fleet = testFleet({ COPILOTFLEET_SERVE_LOG_LEVEL: "warn" });

it.each(HOSTILE_HISTORIES)(
  "serve goes on answering everybody while a user reads a history of %s",
  async (_name, write, isTooLong) => {
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
    const answers = pings(url, () => processorMs(serving.pid));
    {
      await using _ = answers;
      const replies = await Promise.all(readsOf(id).map(async (path) => await ask(url, "GET", path, { token })));
      const expected = isTooLong ? { status: 409, code: "FLEET_SESSION_LOST" } : { status: 200, code: undefined };
      for (const { status, json } of replies) expect({ status, code: json?.code }).toEqual(expected);
      expect((await ask(url, "GET", "/v1/sessions", { token })).status).toBe(200);
      if (isTooLong) {
        const { message } = await fleet.refusal(5, ["transcript", id, "--user", "alice"]);
        expect(message).toMatch(
          /^The history of session ".+" has \d+ bytes to read. The fleet reads at most 268435456 bytes.$/,
        );
      }
      // The user's own server may fail on its history, or cut the history short. Nobody else may notice it.
      await turn(AbortSignal.timeout(3_000)).catch(() => null);
    }
    if (isTooLong) {
      await fleet.ok(["list", "--user", "alice"]);
      await fleet.ok(["gc", "--dry-run"]);
      await fleet.run(["delete", id, "--user", "alice"]);
    }
    expect(answers.longestMs).toBeLessThan(MOST_MS);
  },
);
