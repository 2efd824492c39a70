// Asks Consul for a service as a Node program does, and prints what it sees as a JSON array of "ADDRESS:PORT".
// Arguments: the reader, Consul's HTTP address, the port of its DNS, the service.
const { Resolver } = require('node:dns').promises

const [reader, http, port, service] = process.argv.slice(2)
const place = (address, number) => (address.includes(':') ? `[${address}]:${number}` : `${address}:${number}`)
const name = `${service}.service.consul`

const resolver = () => {
  const made = new Resolver()
  made.setServers([`127.0.0.1:${port}`])
  return made
}

// A name or a kind of record that does not exist is a service without instances.
const orNone = (asked) =>
  asked.catch((error) => {
    if (['ENOTFOUND', 'ENODATA'].includes(error.code)) return []
    throw error
  })

const api = async (passing) => {
  const { default: Consul } = await import('consul')
  const at = new URL(http)
  const found = await new Consul({ host: at.hostname, port: Number(at.port) }).health.service({ service, passing })
  return found.map((entry) => place(entry.Service.Address, entry.Service.Port))
}

const readers = {
  api: () => api(true),
  'api-default': () => api(undefined),
  resolve: async () => {
    const made = resolver()
    return [...(await orNone(made.resolve4(name))), ...(await orNone(made.resolve6(name)))]
  },
  srv: async () => {
    const made = resolver()
    const records = await orNone(made.resolveSrv(name))
    const found = await Promise.all(
      records.map(async (record) => {
        const [four, six] = await Promise.all([orNone(made.resolve4(record.name)), orNone(made.resolve6(record.name))])
        return [...four, ...six].map((address) => place(address, record.port))
      }),
    )
    return found.flat()
  },
}

readers[reader]().then((found) => console.log(JSON.stringify(found)))
