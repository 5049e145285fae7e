/**
 * Measures the cost of TLS at the front door. Two front doors of one fleet run as separate processes, and one of them
 * uses TLS. One process is the client of both and compares them in two ways: turns of one client, and many clients that
 * stream at the same time.
 *
 * Run: npm run build && npx tsx bench/tls.ts [turns clients sessions words rounds]
 */
import { Fleet } from "../src/index.js";
import { CertificateFiles, TestAuthority } from "../test/fixtures/tls/authority.js";
import { type Crowd, Member } from "./gateway/crowds.js";
import { startBuilt } from "./gateway/processes.js";
import { RawClient } from "./gateway/raw-client.js";
import { stream } from "./gateway/streaming.js";
import { withModel } from "./gateway/with-model.js";
import { claim, compare, printMachine, ratio } from "./measure.js";

const LIMIT_MS = 10 * 60 * 1000;
const [turns = 60, clients = 20, sessions = 5, words = 100, rounds = 10] = process.argv.slice(2).map(Number);

type Connect = () => Promise<RawClient>;

/** Connects a client and creates a session for it. */
async function openOne(connect: Connect, sessionId: string): Promise<RawClient> {
  const client = await connect();
  await client.request("session.create", { sessionId, streaming: true });
  return client;
}

async function openCrowd(connect: Connect, name: string): Promise<Crowd> {
  const members = [];
  for (let index = 0; index < clients; index++) {
    const client = await connect();
    const member = new Member(client, async (sessionId) => {
      await client.request("session.create", { sessionId, streaming: true });
    });
    await member.create(sessions);
    members.push(member);
  }
  return { name, members, between: () => 0 };
}

printMachine();
await withModel(LIMIT_MS, async (env, folder) => {
  const authority = new TestAuthority();
  const { cert, key } = new CertificateFiles(folder, authority.issue());
  await using fleet = await Fleet.open({ env, cwd: folder });
  const { token } = await fleet.tokens.issue("bench");
  using plainDoor = await startBuilt("door", env);
  const files = { COPILOTFLEET_SERVE_TLS_CERT: cert, COPILOTFLEET_SERVE_TLS_KEY: key };
  using tlsDoor = await startBuilt("door", { ...env, ...files });
  const plain = async () => await RawClient.connect(plainDoor.url, token);
  const tls = async () => await RawClient.connect(tlsDoor.url, token, { ca: authority.cert });

  const [without, withTls] = [await openOne(plain, "without"), await openOne(tls, "with")];
  const medians = await compare(turns, [
    { name: "turn without TLS", round: async () => await without.turn("without", "hello").then(() => undefined) },
    { name: "turn with TLS", round: async () => await withTls.turn("with", "hello").then(() => undefined) },
  ]);
  claim("turn, with TLS to without", ratio(medians, "turn with TLS", "turn without TLS"), 1.15);

  const crowds = [await openCrowd(plain, "without TLS"), await openCrowd(tls, "with TLS")];
  const streams = await compare(
    rounds,
    crowds.map((crowd) => ({
      name: `${clients * sessions} streams ${crowd.name}`,
      round: async () => (await stream(crowd, words)).ms,
    })),
  );
  const [fast = 0, slow = 0] = [...streams.values()];
  claim("streaming, time with TLS to without", slow / fast, 1 / 0.9);
  for (const client of [without, withTls, ...crowds.flatMap(({ members }) => members.map(({ client }) => client))])
    client.end();
});
