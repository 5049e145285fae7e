import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import { showAddress } from "../../src/runtime/launch/listen.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { type FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { type Serving, serve } from "../fixtures/fleets/serve.js";
import { directSession, heldModel, heldTurn } from "../fixtures/fleets/turns.js";
import { freePort } from "../fixtures/store/redis-server.js";

const HAS_IPV6 = Object.values(networkInterfaces())
  .flat()
  .some((each) => each?.address === "::1");
const LOOPBACK = HAS_IPV6 ? ["127.0.0.1", "::1"] : ["127.0.0.1"];

interface Ports {
  door: number;
  http: number;
  metrics: number;
}

/** Starts `serve` with the front door, the HTTP API and the metrics on free ports of `host`. */
async function serveAll(fleet: FaultFleet, host = "127.0.0.1"): Promise<{ serving: Serving; ports: Ports }> {
  const anyPort = showAddress({ host, port: 0 });
  const env = {
    COPILOTFLEET_SERVE_LISTEN: anyPort,
    COPILOTFLEET_SERVE_HTTP: anyPort,
    COPILOTFLEET_SERVE_METRICS: anyPort,
  };
  const serving = await serve(fleet, { env: { ...env, COPILOTFLEET_INSECURE: "true" } });
  const { door, http, metrics } = await serving.logged("serving");
  const [doorPort = 0, httpPort = 0, metricsPort = 0] = [door, http, metrics].map((address) =>
    Number(String(address).split(":").at(-1)),
  );
  return { serving, ports: { door: doorPort, http: httpPort, metrics: metricsPort } };
}

/** Listens on the address. Resolves with null when the address is taken. */
async function bind(host: string, port: number): Promise<Server | null> {
  const server = createServer();
  server.listen({ host, port, ipv6Only: true });
  try {
    await once(server, "listening");
  } catch {
    return null;
  }
  onTestFinished(() => void server.close());
  return server;
}

interface Squatter {
  /** The addresses that it got, each with the processes of the fleet's servers that still ran. */
  got: { address: string; servers: readonly unknown[] }[];
  /** The connections that it got. */
  victims: Socket[];
  tries: number;
}

/** A program of an agent: takes the addresses as soon as they are free, and collects what clients send. */
function squat(ports: Ports, running: () => readonly unknown[]): Squatter {
  const squatter: Squatter = { got: [], victims: [], tries: 0 };
  let isOver = false;
  onTestFinished(() => {
    isOver = true;
  });
  const take = async (host: string, port: number) => {
    for (; !isOver; squatter.tries++) {
      const server = await bind(host, port);
      if (server !== null) {
        server.on("connection", (socket) => squatter.victims.push(socket));
        squatter.got.push({ address: showAddress({ host, port }), servers: running() });
        return;
      }
      await delay(1);
    }
  };
  for (const port of Object.values(ports) as number[]) for (const host of LOOPBACK) void take(host, port);
  return squatter;
}

it("a draining serve keeps all its addresses and refuses clients itself until its servers have ended", async () => {
  const model = await heldModel();
  const fleet = await faultFleet({ ...model.env, COPILOTFLEET_DRAIN_TIMEOUT: "2m" });
  const { pid = 0 } = await fleet.spawn("alice");
  const { token } = await fleet.json<{ token: string }>(["token", "issue", "--user", "bob", "--ttl", "1h"]);
  const { serving, ports } = await serveAll(fleet);
  const reply = await heldTurn(await directSession(fleet, model, "held"), model);
  const squatter = squat(ports, () => fleet.processes().filter((each) => each !== serving.pid));
  serving.kill("SIGTERM");
  await serving.logged("draining 1 server");
  const { tries } = squatter;
  await eventually("the attempts to take the addresses", () => squatter.tries > tries + 60);
  for (const host of LOOPBACK) {
    const client = await RawClient.open(showAddress({ host, port: ports.door }));
    expect(await client.request("connect", { token })).toMatchObject({
      error: { data: { code: "FLEET_POOL_DRAINING", retryable: true } },
    });
    const url = `http://${showAddress({ host, port: ports.http })}`;
    const refused = await fetch(`${url}/v1/sessions`, {
      method: "POST",
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
      body: "{}",
    });
    expect({ status: refused.status, retry: refused.headers.has("Retry-After") }).toEqual({ status: 503, retry: true });
    const ready = await fetch(`http://${showAddress({ host, port: ports.metrics })}/readyz`);
    expect(ready.status).toBe(503);
  }
  expect(squatter.got).toEqual([]);
  expect(fleet.processes()).toContain(pid);
  model.release();
  expect(await reply()).toBe("[turn 1] done");
  expect((await serving.done).code).toBe(0);
  await eventually("the addresses are free", () => squatter.got.length === 3 * LOOPBACK.length);
  expect(squatter.got.filter(({ servers }) => servers.length > 0)).toEqual([]);
  expect(squatter.victims).toEqual([]);
});

it.each(["127.0.0.1", "0.0.0.0", ...(HAS_IPV6 ? ["::1", "::"] : [])])(
  "serve on %s answers at both loopback addresses of all its ports, and no other program can listen there",
  async (host) => {
    const fleet = await faultFleet();
    const { token } = await fleet.json<{ token: string }>(["token", "issue", "--user", "bob", "--ttl", "1h"]);
    const { serving, ports } = await serveAll(fleet, host);
    for (const loopback of LOOPBACK) {
      const at = (port: number) => showAddress({ host: loopback, port });
      const client = await RawClient.open(at(ports.door));
      expect((await client.request("connect", { token })).error).toBeUndefined();
      const headers = { Authorization: `Bearer ${token}` };
      expect((await fetch(`http://${at(ports.http)}/v1/sessions`, { headers })).status).toBe(200);
      expect((await fetch(`http://${at(ports.metrics)}/metrics`)).status).toBe(200);
    }
    for (const port of Object.values(ports) as number[])
      for (const attacked of [...LOOPBACK, "0.0.0.0", ...(HAS_IPV6 ? ["::"] : [])])
        expect(await bind(attacked, port), `${attacked} ${port}`).toBeNull();
    expect((await serving.end()).code).toBe(0);
  },
);

it.skipIf(!HAS_IPV6).each([
  ["127.0.0.1", "::1"],
  ["::1", "127.0.0.1"],
])(
  "serve on %s is refused with FLEET_ADDRESS_TAKEN when another process listens on the same port of %s",
  async (host, taken) => {
    const fleet = await faultFleet();
    const port = await freePort();
    expect(await bind(taken, port)).not.toBeNull();
    const start = serve(fleet, { env: { COPILOTFLEET_SERVE_LISTEN: showAddress({ host, port }) } });
    await expect(start).rejects.toThrow(
      `serve cannot listen on "${showAddress({ host: taken, port })}" (serve.listen): another process listens there`,
    );
  },
);
