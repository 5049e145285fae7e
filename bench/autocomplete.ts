/**
 * Compares the time that `autocomplete` needs to complete an id, in a fleet with 1,000 sessions of 1,000 users, with
 * the time that Node needs to start without a script.
 *
 * Run: npm run build && npx tsx bench/autocomplete.ts [sessions]
 */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { openStore } from "../src/store/store.js";
import { serverRecord, sessionRecord } from "../test/fixtures/store/store-records.js";
import { claim, compare, fleetCommand, printMachine, ratio, withState } from "./measure.js";

const run = promisify(execFile);
const count = Number(process.argv[2] ?? 1000);
/** The command lines to complete: the first with any server, session or user; the second with a session of user-7. */
const LINES = ["copilotfleet describe ", "copilotfleet send --user user-7 "];

printMachine();
await withState(async (env) => {
  const numbers = Array.from({ length: count }, (_, number) => number);
  const store = openStore("file", env.COPILOTFLEET_HOME ?? "");
  await store.registry.update(({ servers }) => {
    for (const number of numbers) {
      const id = `server-${number}`;
      servers[id] = serverRecord(id, { user: `user-${number}`, state: "stopped", process: null, launchId: null });
    }
  });
  for (const number of numbers)
    await store.sessions.create(sessionRecord(`session-${number}`, { owner: `user-${number}` }));
  await store.close();
  const words = (await fleetCommand(["autocomplete", "bash", "--", LINES[0] ?? ""], env)).split("\n").length - 1;
  console.log(`${words} candidates for ${LINES[0]}`);
  const medians = await compare(25, [
    { name: "node -e 0", round: async () => void (await run(process.execPath, ["-e", "0"])) },
    ...LINES.map((line) => ({
      name: line,
      round: async () => void (await fleetCommand(["autocomplete", "bash", "--", line], env)),
    })),
  ]);
  for (const line of LINES) claim(`${line}/ node -e 0`, ratio(medians, line, "node -e 0"), 3);
});
