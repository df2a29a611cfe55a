// What is asked of the gateway, with the key where it wants one.

const KEY = "tandem-api-key";
let askForKey = null;
let asking = null;

/** Calls `ask` for a key whenever the gateway refuses the one it got. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** An answer of the gateway; waits for a key and tries again while it wants another. */
export async function ask(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    // One question, however many answers wait for it.
    asking ??= askForKey(key !== null).finally(() => (asking = null));
    sessionStorage.setItem(KEY, await asking);
  }
}

/** The JSON of an answer. Throws what the gateway says where it is none. */
export async function json(path) {
  const response = await ask(path);
  const body = await response.json();
  if (!response.ok) throw new Error(body.error?.message ?? `HTTP ${response.status}`);
  return body;
}

/** Data of server-sent events, one by one. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split("\n").filter((line) => line.startsWith("data: "));
        if (data.length) yield data.map((line) => line.slice(6)).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
