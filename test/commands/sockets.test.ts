import { type ChildProcess, spawn } from "node:child_process";
import { createServer, type Server } from "node:net";
import { afterAll, describe, expect, it, onTestFinished } from "vitest";
import { inheritedListeners } from "../../src/cli/run/serve.js";
import { RawClient } from "../door/raw-client.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { COMMAND, outputOf } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";

const fleet = new TestFleet({ COPILOTFLEET_SERVE_METRICS: "127.0.0.1:0", COPILOTFLEET_SERVE_HTTP: "127.0.0.1:0" });
afterAll(async () => await fleet.end());

async function listening(host: string): Promise<Server> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, host, resolve));
  return server;
}

function portOf(server: Server): number {
  const address = server.address();
  return typeof address === "object" ? (address?.port ?? 0) : 0;
}

/** Node has no public API for the descriptor of a server, so this reads a private field. */
function descriptorOf(server: Server): number {
  return (server as unknown as { _handle: { fd: number } })._handle.fd;
}

/** Runs `serve` as systemd does, with these sockets as descriptors 3 and up. Closes them in the test's process. */
function serveWith(sockets: readonly Server[], names: string): ChildProcess {
  const handed = { LISTEN_FDS: String(sockets.length), LISTEN_FDNAMES: names };
  const child = spawn("sh", ["-c", 'LISTEN_PID=$$ exec "$@"', "sh", process.execPath, COMMAND, "serve"], {
    env: { ...fleet.env, ...handed },
    cwd: fleet.folder,
    stdio: ["ignore", "pipe", "pipe", ...sockets.map(descriptorOf)],
  });
  for (const socket of sockets) socket.close();
  onTestFinished(() => void child.kill("SIGKILL"));
  return child;
}

describe("serve with the sockets of systemd", () => {
  it("serve opens the HTTP API on the socket named http, and the front door on the other socket", async () => {
    const [http, door] = [await listening("127.0.0.1"), await listening("127.0.0.1")];
    const [httpPort, doorPort] = [portOf(http), portOf(door)];
    const child = serveWith([http, door], "http:copilotfleet.socket");
    const ended = outputOf(child, 0);
    const token = (await fleet.ok(["token", "issue", "--user", "alice"])).trim();
    const me = async () =>
      await fetch(`http://127.0.0.1:${httpPort}/v1/me`, { headers: { Authorization: `Bearer ${token}` } })
        .then(async (response) => ((await response.json()) as { user: string }).user)
        .catch(() => null);
    await eventually("the HTTP API", async () => (await me()) === "alice", 60_000);
    const client = await RawClient.as(`127.0.0.1:${doorPort}`, token);
    expect(await client.request("ping", {})).toMatchObject({ result: {} });
    client.socket.destroy();
    child.kill("SIGTERM");
    const { code, stdout } = await ended;
    expect({ code, stdout }).toMatchObject({
      code: 0,
      stdout: expect.stringContaining(`Front door: 127.0.0.1:${doorPort}. HTTP API: http://127.0.0.1:${httpPort}.`),
    });
  });

  it("serve refuses a socket for the HTTP API that other machines can reach, if there is no TLS", async () => {
    const child = serveWith([await listening("0.0.0.0")], "http");
    const { code, stderr } = await outputOf(child, 0);
    expect({ code, stderr }).toMatchObject({
      code: 3,
      stderr: expect.stringMatching(/The address of the socket that was handed to this process is "0\.0\.0\.0:\d+"/),
    });
  });

  it.each([
    [{ LISTEN_FDS: "1", LISTEN_PID: "7" }, { listen: { fd: 3 } }],
    [{ LISTEN_FDS: "1", LISTEN_FDNAMES: "http", LISTEN_PID: "7" }, { http: { fd: 3 } }],
    [
      { LISTEN_FDS: "2", LISTEN_FDNAMES: "a:http", LISTEN_PID: "7" },
      { listen: { fd: 3 }, http: { fd: 4 } },
    ],
    [{ LISTEN_FDS: "2", LISTEN_FDNAMES: "a:http", LISTEN_PID: "8" }, {}],
    [{ LISTEN_FDS: "", LISTEN_PID: "7" }, {}],
    [{}, {}],
  ])("serve with the variables %j takes the sockets %j", (variables, sockets) => {
    expect(inheritedListeners(variables, 7)).toEqual(sockets);
  });
});
