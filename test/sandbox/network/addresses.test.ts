import { networkInterfaces } from "node:os";
import { afterAll, describe, expect, it, vi } from "vitest";

vi.mock("node:os", async (original) => ({
  ...(await original<typeof import("node:os")>()),
  networkInterfaces: vi.fn(),
}));
const made = vi.hoisted(() => ({ sets: 0 }));
vi.mock("node:net", async (original) => {
  const net = await original<typeof import("node:net")>();
  class BlockList extends net.BlockList {
    constructor() {
      super();
      made.sets++;
    }
  }
  return { ...net, BlockList };
});
// Reset the modules now and at the end, because other test files in this process load the real modules.
vi.resetModules();
const { blockedList, isBlocked, ServerRules } = await import("../../../src/sandbox/network/addresses.js");
afterAll(() => void vi.resetModules());

const addressesOf = (addresses: string[], internal: boolean) =>
  addresses.map((address) => ({ address, internal })) as ReturnType<typeof networkInterfaces>[string];
vi.mocked(networkInterfaces).mockImplementation(() => ({
  lo: addressesOf(["127.0.0.1", "::1", "1.2.3.9"], true),
  eth0: addressesOf(["5.6.7.8", "10.9.0.1", "2a00:1450::99", "fe80::1"], false),
}));

describe("isBlocked", () => {
  it.each(
    `0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1
     172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1
     239.1.1.1 240.0.0.1 255.255.255.255 100.100.100.200 168.63.129.16
     :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:8.8.8.8 ::FFFF:7f00:1 64:ff9b::10.0.0.1 64:ff9b:1::1
     100::1 2001::1 2001:db8::1 2002:7f00:1:: 2002:a00:1::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0
     fec0::1 ff02::1`.split(/\s+/),
  )("isBlocked returns true for the address %s", (address) => {
    expect(isBlocked(address)).toBe(true);
  });

  it.each(["", "localhost", "0x7f.0.0.1", "127.1", "2130706433", "0177.0.0.1", "[::1]", "1.2.3.4 "])(
    "isBlocked returns true for %j, which is not the usual form of an address",
    (address) => {
      expect(isBlocked(address)).toBe(true);
    },
  );

  it.each(
    `1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15
     172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 198.17.255.255 198.20.0.0 223.255.255.255
     2000::1 2001:200::1 2606:4700:4700::1111 2a00:1450::1`.split(/\s+/),
  )("isBlocked returns false for the public address %s", (address) => {
    expect(isBlocked(address)).toBe(false);
  });
});

describe("the rules of a server", () => {
  it.each([
    ["10.1.0.0/16:5432", "10.1.2.3", 5432, true],
    ["10.1.0.0/16:5432", "10.2.0.1", 5432, false],
    ["10.1.0.0/16:5432", "10.1.2.3", 443, false],
    ["10.1.0.0/16:*", "10.1.2.3", 1, true],
    ["127.0.0.1", "127.0.0.1", 443, true],
    ["127.0.0.1", "127.0.0.2", 443, false],
    ["127.0.0.1", "::ffff:127.0.0.1", 443, false],
    ["fd00::/8", "fd00::1", 443, true],
    // A range that is wider than a blocked one allows only public addresses.
    ["0.0.0.0/0", "8.8.8.8", 443, true],
    ["0.0.0.0/0", "10.0.0.1", 443, false],
    ["0.0.0.0/0", "127.0.0.1", 443, false],
    ["8.0.0.0/5", "10.0.0.1", 443, false],
    ["::/0", "2606:4700::1", 443, true],
    ["::/0", "::1", 443, false],
    ["::/0", "8.8.8.8", 443, false],
    ["::/0", "::ffff:127.0.0.1", 443, false],
    // A metadata address needs an entry for exactly this address.
    ["169.254.0.0/16", "169.254.1.1", 443, true],
    ["169.254.0.0/16", "169.254.169.254", 443, false],
    ["168.63.129.0/24", "168.63.129.16", 443, false],
    ["169.254.169.254:80", "169.254.169.254", 80, true],
    ["fd00::/8", "fd00:ec2::254", 443, false],
    // An address of this machine also needs an entry for exactly this address.
    ["0.0.0.0/0", "5.6.7.8", 443, false],
    ["0.0.0.0/0", "1.2.3.9", 443, false],
    ["::/0", "2a00:1450:0:0::99", 443, false],
    ["10.0.0.0/8", "10.9.0.1", 443, false],
    ["10.0.0.0/8", "10.9.0.2", 443, true],
    ["5.6.7.8", "5.6.7.8", 443, true],
    ["127.0.0.0/8", "127.0.0.1", 443, true],
    ["*:*", "8.8.8.8", 443, false],
    ["example.com", "8.8.8.8", 443, false],
  ])("the entry %s allows the address %s at port %i: %s", (entry, address, port, isAllowed) => {
    expect(new ServerRules([entry]).allowsAddress(address, port)).toBe(isAllowed);
  });

  it("ServerRules lets a name lead to public addresses, and to private ones only with an entry for the address", () => {
    const rules = new ServerRules(["db.example:*", "10.0.0.0/8:5432"]);
    const addresses = ["1.2.3.4", "10.0.0.1", "127.0.0.1", "169.254.169.254"];
    expect(addresses.filter((address) => rules.mayLeadTo(address, 5432))).toEqual(["1.2.3.4", "10.0.0.1"]);
    expect(addresses.filter((address) => rules.mayLeadTo(address, 443))).toEqual(["1.2.3.4"]);
    expect(rules.allowsName("db.example", 5432)).toBe(true);
    expect(rules.allowsName("10.0.0.1", 5432)).toBe(false);
  });

  it("ServerRules without entries allows nothing", () => {
    const rules = new ServerRules([]);
    expect(rules.allowsName("example.com", 443) || rules.allowsAddress("8.8.8.8", 443)).toBe(false);
  });
});

it("the list for the bridge has each range and each metadata address as digits", () => {
  const list = blockedList().split(",");
  const v6 = (head: string, tail = "") => `${head}${"0".repeat(32 - head.length - tail.length)}${tail}`;
  expect(list).toEqual(expect.arrayContaining(["0a000000/8", "ac100000/12", "a9fea9fe/32", "a83f8110/32"]));
  expect(list).toEqual(
    expect.arrayContaining([`${v6("")}/3`, `${v6("20010db8")}/32`, `${v6("fd000ec2", "0254")}/128`]),
  );
  for (const entry of list) expect(entry).toMatch(/^([0-9a-f]{8}|[0-9a-f]{32})\/\d+$/);
});
