/**
 * Measures the longest answer of `/healthz` while a user reads a history with which an agent tries to stop the process.
 * The HTTP API runs in a separate process, and is that of the built library.
 *
 * Run: npm run build && npx tsx bench/hostile-history.ts
 */
import { Fleet } from "../src/index.js";
import { historyPath } from "../src/runtime/history/session-state.js";
import { send } from "../test/fixtures/api/send.js";
import { HOSTILE_HISTORIES, pings, readsOf } from "../test/fixtures/sessions/hostile-histories.js";
import { startBuilt } from "./gateway/processes.js";
import { claim, printMachine, withState } from "./measure.js";

printMachine();
await withState(async (env, folder) => {
  await using fleet = await Fleet.open({ env, cwd: folder });
  const { token } = await fleet.tokens.issue("agent");
  const headers = { Authorization: `Bearer ${token}` };
  using door = await startBuilt("http", env);
  for (const [name, write] of HOSTILE_HISTORIES) {
    const session = await fleet.sessions.create({ user: "agent" });
    await fleet.sessions.send(session, "hello");
    await fleet.sessions.leave(session);
    const { home } = await fleet.servers.ofUser("agent");
    write(historyPath(home, session.sessionId));
    const answers = pings(door.url, () => performance.now());
    {
      await using _ = answers;
      await Promise.all(readsOf(session.sessionId).map(async (path) => await send(door.url, "GET", path, { headers })));
    }
    claim(`longest answer in ms, ${name}`, answers.longestMs, 250);
    await fleet.sessions.delete([session.sessionId]);
  }
});
