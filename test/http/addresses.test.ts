import type { IncomingMessage } from "node:http";
import { expect, it } from "vitest";
import { ClientAddresses } from "../../src/http/door-state.js";
import { ask, TestApi } from "./harness.js";

const PROXIES = ["10.0.0.0/8", "192.0.2.7", "fd00::/8"];

function addressOf(remoteAddress: string, noted: readonly string[], proxies = PROXIES): string {
  const rawHeaders = ["Host", "fleet.example", ...noted.flatMap((each) => ["x-Forwarded-FOR", each])];
  return new ClientAddresses(proxies).of({ socket: { remoteAddress }, rawHeaders } as unknown as IncomingMessage);
}

it.each([
  ["the connection's if the connection does not come from a proxy", "203.0.113.5", ["198.51.100.1"], "203.0.113.5"],
  ["the one that the proxy wrote to X-Forwarded-For", "10.1.2.3", ["203.0.113.5"], "203.0.113.5"],
  ["the one before the second proxy's", "::ffff:10.1.2.3", ["203.0.113.5, 192.0.2.7"], "203.0.113.5"],
  ["the last one in several X-Forwarded-For headers", "10.1.2.3", ["1.2.3.4", "203.0.113.5"], "203.0.113.5"],
  ["the last one, even if earlier ones are forged", "10.1.2.3", ["8.8.8.8, 10.9.9.9, 203.0.113.5"], "203.0.113.5"],
  ["the forwarded one without its port and brackets", "fd00::1", ["[2001:db8::5]:443"], "2001:db8::5"],
  ["the forwarded one without its port", "10.1.2.3", ["203.0.113.5:1234"], "203.0.113.5"],
  ["the proxy's if the forwarded text is not an address", "10.1.2.3", ["203.0.113.5, unknown"], "10.1.2.3"],
  ["the proxy's if there is no X-Forwarded-For", "10.1.2.3", [], "10.1.2.3"],
] as const)("the client's address is %s", (_, remote, noted, address) => {
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
