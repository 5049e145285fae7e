/**
 * Compares `gc` on 5,000 expired sessions with other ways to delete them: the loop of GitHub's guide, which lists the
 * sessions and deletes them one by one with the unmodified SDK (on a sample of 200, scaled up), and the runtime's bulk
 * delete. The time of `gc` includes everything that the command does, such as starting Node and deleting records.
 *
 * Run: npm run build && npx tsx bench/gc.ts [sessions] [sample]
 */
import { cpSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { Fleet } from "../src/index.js";
import { RawConnection } from "../src/runtime/client/raw-connection.js";
import { openStore } from "../src/store/store.js";
import { plantSessions, recordSessions, type Template } from "../test/fixtures/sessions/gc-sessions.js";
import { claim, compare, fleetCommand, printMachine, ratio, withState } from "./measure.js";

const count = Number(process.argv[2] ?? 5_000);
const sample = Math.min(count, Number(process.argv[3] ?? 200));
const ROUNDS = 3;
const AGE_MS = 48 * 60 * 60 * 1000;
const LONG_MS = 10 * 60 * 1000;

const LOOP = `SDK: list, delete ${sample} one by one, x ${count / sample}`;
const BULK = `runtime's sessions.bulkDelete, ${count}`;
const RUNNING = `copilotfleet gc, server running, ${count}`;
const STOPPED = `copilotfleet gc, server stopped, ${count}`;

printMachine();
await withState(async (env, folder) => {
  await using fleet = await Fleet.open({ env });
  await using store = disposable(openStore("file", env.COPILOTFLEET_HOME ?? ""));
  const template = await makeTemplate(fleet, folder);
  const { server: running } = await fleet.servers.spawn("running");
  const { server: stopped } = await fleet.servers.spawn("stopped");
  await fleet.servers.stop([stopped.id]);
  const { url, token } = await fleet.clients.connectInfo("running");
  const plain = new CopilotClient({ connection: RuntimeConnection.forUri(url, { connectionToken: token }) });
  await plain.start();

  const plant = async (server: { id: string; user: string | null; home: string }, recorded: boolean) => {
    const statePath = join(server.home, "session-state");
    rmSync(statePath, { recursive: true, force: true });
    mkdirSync(statePath, { recursive: true });
    const ids = Array.from({ length: count }, (_, index) => `expired-${index}`);
    plantSessions(statePath, template, ids, AGE_MS);
    if (recorded) await recordSessions(store, ids, { owner: server.user ?? "", serverId: server.id, ageMs: AGE_MS });
    return ids;
  };
  const collect = async (server: typeof running) => {
    await plant(server, true);
    return await timed(async () => {
      const result = JSON.parse(await fleetCommand(["gc", "--ttl", "24h", "--json"], env)) as { deleted: unknown[] };
      if (result.deleted.length !== count) throw new Error(`gc deleted ${result.deleted.length} of ${count}`);
    });
  };

  const medians = await compare(ROUNDS, [
    {
      name: LOOP,
      round: async () => {
        await plant(running, false);
        let listed: { sessionId: string }[] = [];
        const listing = await timed(async () => {
          listed = await plain.listSessions();
        });
        const deleting = await timed(async () => {
          for (const { sessionId } of listed.slice(0, sample)) await plain.deleteSession(sessionId);
        });
        return listing + (deleting * count) / sample;
      },
    },
    {
      name: BULK,
      round: async () => {
        const sessionIds = await plant(running, false);
        const [host = "", port] = url.split(":");
        const endpoint = { address: host, port: Number(port), token };
        await using connection = await RawConnection.open(endpoint, AbortSignal.timeout(LONG_MS));
        return await timed(async () => void (await connection.request("sessions.bulkDelete", { sessionIds })));
      },
    },
    { name: RUNNING, round: () => collect(running) },
    { name: STOPPED, round: () => collect(stopped) },
  ]);
  for (const name of [RUNNING, STOPPED]) {
    claim(`${name} / list-and-delete loop`, ratio(medians, name, LOOP), 1 / 50);
    claim(`${name} / bulkDelete`, ratio(medians, name, BULK), 3);
  }
  await plain.stop();
});

/** Runs a real turn in a session, and copies the session to a folder outside of its server's home. */
async function makeTemplate(fleet: Fleet, folder: string): Promise<Template> {
  const session = await fleet.sessions.create({ user: "template", sessionId: "template" });
  await fleet.sessions.send(session, "hello");
  await fleet.sessions.leave(session);
  const { home } = await fleet.servers.ofUser("template");
  const copy = join(folder, "template");
  cpSync(join(home, "session-state", "template"), copy, { recursive: true });
  return { folder: copy, id: "template" };
}

async function timed(work: () => Promise<void>): Promise<number> {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

function disposable<T extends { close(): Promise<void> }>(closed: T): T & AsyncDisposable {
  return Object.assign(closed, { [Symbol.asyncDispose]: () => closed.close() });
}
