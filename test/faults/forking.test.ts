import { join } from "node:path";
import { expect, it } from "vitest";
import { rounds } from "../fixtures/fleets/fault-fleet.js";
import { bareRuntime, SETTINGS } from "../fixtures/hosts/pod-runtime.js";
import { Pods, podsProblem } from "../fixtures/hosts/pods.js";
import { readHistory } from "../fixtures/sessions/session-history.js";

const problem = podsProblem();
if (problem !== undefined) console.warn(`hosts in namespaces are not tested: ${problem}`);

it.skipIf(problem !== undefined)(
  "without the fleet, two runtimes on two hosts with a common home fork the histories of their sessions",
  async () => {
    const count = rounds(5, 100);
    await using pods = await Pods.start({ count: 2 });
    const home = join(pods.shared, "home");
    const clients = await Promise.all(pods.hosts.map(async (host) => await bareRuntime(host, home)));
    const reports = [];
    for (let round = 0; round < count; round++) {
      const sessionId = `round-${round}`;
      const first = await clients[0]?.createSession({ ...SETTINGS, sessionId });
      await first?.sendAndWait({ prompt: "begin" });
      await first?.disconnect();
      const both = await Promise.all(clients.map((client) => client.resumeSession(sessionId, SETTINGS)));
      // Both runtimes accept a prompt to the same session, and each answers it as turn 2.
      const replies = await Promise.all(
        both.map((session, host) => session.sendAndWait({ prompt: `of host ${host}` })),
      );
      expect(replies.map((reply) => reply?.data.content)).toEqual(["[turn 2] of host 0", "[turn 2] of host 1"]);
      await Promise.all(both.map((session) => session.disconnect()));
      reports.push(readHistory(join(home, "session-state", sessionId, "events.jsonl")));
    }
    const forked = reports.filter(({ forks }) => forks.length > 0);
    console.log(`bare runtimes: ${forked.length} of ${count} histories forked`);
    expect(forked.length).toBeGreaterThan(0);
    // Each fork loses a prompt: the branch that continues lacks the turn of one host, which was answered.
    expect(forked.every(({ lost }) => lost.length > 0)).toBe(true);
    await Promise.all(clients.map((client) => client.forceStop()));
  },
);
