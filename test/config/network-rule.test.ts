import { describe, expect, it } from "vitest";
import { allowsName, asciiName, networkRuleFault, readNetworkRule } from "../../src/base/values/network.js";

describe("an entry of sandbox.allow", () => {
  it.each([
    ["registry.npmjs.org", { name: "registry.npmjs.org", port: 443 }],
    ["Registry.NPMJS.org.:8443", { name: "registry.npmjs.org", port: 8443 }],
    ["bücher.example", { name: "xn--bcher-kva.example", port: 443 }],
    ["*.example.com", { name: "*.example.com", port: 443 }],
    ["*:80", { name: "*", port: 80 }],
    ["example.com:*", { name: "example.com", port: null }],
    ["localhost", { name: "localhost", port: 443 }],
    ["10.0.0.1", { address: "10.0.0.1", prefix: 32, port: 443 }],
    ["10.1.0.0/16:5432", { address: "10.1.0.0", prefix: 16, port: 5432 }],
    ["0.0.0.0/0:*", { address: "0.0.0.0", prefix: 0, port: null }],
    ["2001:db8::1", { address: "2001:db8::1", prefix: 128, port: 443 }],
    ["2001:db8::/32", { address: "2001:db8::", prefix: 32, port: 443 }],
    ["[2001:db8::/32]:8080", { address: "2001:db8::", prefix: 32, port: 8080 }],
    ["[::1]", { address: "::1", prefix: 128, port: 443 }],
  ])("readNetworkRule accepts %s", (text, rule) => {
    expect(readNetworkRule(text)).toEqual(rule);
    expect(networkRuleFault(text)).toBeNull();
  });

  it.each([
    ["", "which is empty"],
    ["https://example.com", "which is a URL"],
    ["example.com:0", "which has no valid port"],
    ["example.com:65536", "which has no valid port"],
    ...[
      ["example.com:", "a..b", "-a.com", "a.-b", "a b.com", "*.*.com", "a.*.com", "**", "*.", ".", "user@a.com"],
      ["127.1", "0x7f.0.0.1", "2130706433", "0177.0.0.1", "１２７.0.0.1", "256.1.1.1", "1.2.3", "foo.0x", "a.1"],
      ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/08", "::/129", "fe80::1%eth0", "[example.com]:443", "[::1", "a.com/8"],
      ["a%2eb.com", "a\\b", `${"a".repeat(64)}.com`, `${"a.".repeat(130)}com`],
    ].flatMap((texts) => texts.map((text): [string, string] => [text, "which is neither a name nor an address"])),
  ])("readNetworkRule refuses %j, %s", (text, fault) => {
    expect(readNetworkRule(text)).toBeNull();
    expect(networkRuleFault(text)).toBe(fault);
  });

  it.each([
    ["example.com", "example.com", 443, true],
    ["example.com", "example.com", 80, false],
    ["example.com", "www.example.com", 443, false],
    ["example.com", "notexample.com", 443, false],
    ["*.example.com", "www.example.com", 443, true],
    ["*.example.com", "a.b.example.com", 443, true],
    ["*.example.com", "example.com", 443, false],
    ["*.example.com", "notexample.com", 443, false],
    ["*.example.com:*", "www.example.com", 22, true],
    ["*", "anything.example", 443, true],
    ["*", "anything.example", 80, false],
    ["0.0.0.0/0:*", "example.com", 443, false],
  ])("the entry %s allows the name %s at port %i: %s", (text, name, port, isAllowed) => {
    const rule = readNetworkRule(text);
    expect(rule !== null && allowsName(rule, name, port)).toBe(isAllowed);
  });
});

it("asciiName returns the same form for equal names: lower case, punycode, no dot at the end", () => {
  expect(["EXAMPLE.com.", "bücher.example", "BÜCHER.example", "xn--bcher-kva.example"].map(asciiName)).toEqual([
    "example.com",
    "xn--bcher-kva.example",
    "xn--bcher-kva.example",
    "xn--bcher-kva.example",
  ]);
});
