import type { IncomingMessage } from "node:http";
import { expect, it } from "vitest";
import { ClientAddresses } from "../../src/api/origins.js";
import { ask, TestApi } from "./harness.js";

const PROXIES = ["10.0.0.0/8", "192.0.2.7", "fd00::/8"];

function addressOf(remoteAddress: string, noted: readonly string[], proxies = PROXIES): string {
  const rawHeaders = ["Host", "fleet.example", ...noted.flatMap((each) => ["x-Forwarded-FOR", each])];
  return new ClientAddresses(proxies).of({ socket: { remoteAddress }, rawHeaders } as unknown as IncomingMessage);
}

it.each([
  ["without a proxy, the connection's", "203.0.113.5", ["198.51.100.1"], "203.0.113.5"],
  ["behind a proxy, the one that the proxy noted", "10.1.2.3", ["203.0.113.5"], "203.0.113.5"],
  ["behind two proxies, the one before both", "::ffff:10.1.2.3", ["203.0.113.5, 192.0.2.7"], "203.0.113.5"],
  ["in several headers, that of the last one", "10.1.2.3", ["1.2.3.4", "203.0.113.5"], "203.0.113.5"],
  ["of a client that writes the header itself, its own", "10.1.2.3", ["8.8.8.8, 10.9.9.9, 203.0.113.5"], "203.0.113.5"],
  ["with a port or brackets, without them", "fd00::1", ["[2001:db8::5]:443"], "2001:db8::5"],
  ["with a port, without it", "10.1.2.3", ["203.0.113.5:1234"], "203.0.113.5"],
  ["that is no address, the proxy's", "10.1.2.3", ["203.0.113.5, unknown"], "10.1.2.3"],
  ["that is missing, the proxy's", "10.1.2.3", [], "10.1.2.3"],
] as const)("the address that counts as the client's: %s", (_, remote, noted, address) => {
  expect(addressOf(remote, noted)).toBe(address);
});

it("without http.proxies, the header X-Forwarded-For does not change the client's address", () => {
  expect(addressOf("127.0.0.1", ["203.0.113.5"], [])).toBe("127.0.0.1");
});

it("the report of a refused token has the address that a proxy in http.proxies wrote to X-Forwarded-For", async () => {
  await using at = await TestApi.open({ config: { http: { proxies: ["127.0.0.1"] } } });
  await ask(at.door.url, "GET", "/v1/me", { token: "wrong", headers: { "X-Forwarded-For": "1.1.1.1, 203.0.113.5" } });
  expect(at.events).toMatchObject([{ event: "token-refused", address: "203.0.113.5" }]);
});
